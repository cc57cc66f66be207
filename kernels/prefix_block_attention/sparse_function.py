"""The overloads of PrefixBlockAttention that keep prefix results, as ONNX functions of standard operators.

They answer to reference.py. All pages that hold keys are attended to by all rows, and what was not asked for is
masked: correct, and no cheaper than the dense overload. In the shapes below `n_rep` query heads share a kv head and
their rows lie one behind another: [n_kv_heads, n_rep * q_len, ...] is the memory of [1, n_heads, q_len, ...]. They take
one copy of the window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
from onnx import TensorProto, helper

from dlm_edge.kernels.function_body import FunctionBody
from dlm_edge.kernels.library import DOMAIN
from dlm_edge.kernels.prefix_block_attention import function_cache as cache
from dlm_edge.kernels.prefix_block_attention.function import OPERATOR, attended_rows, query_rows
from dlm_edge.kernels.select_pages.reference import DENSE_KEEP

INPUTS = (
    "q", "k", "v", "k_cache", "v_cache", "start", "cache_len", "attn_block",
    "active", "pages", "policy", "prefix_out", "prefix_lse", "masses",
)  # fmt: skip
OUTPUTS = ("out", "new_prefix_out", "new_prefix_lse", "new_masses")

# overload: the inputs that follow INPUTS, and how cached keys and values are read
OVERLOADS: dict[str, tuple[tuple[str, ...], Callable[[FunctionBody], None]]] = {
    "sparse": (cache.PLAIN, cache.plain_keys_and_values),
    "sparse_fp16": (cache.PLAIN, cache.plain_keys_and_values),
    "int8": (cache.QUANTIZED, cache.int8_keys_and_values),
    "int4": (cache.QUANTIZED, cache.int4_keys_and_values),
    "int4x2": (cache.PLANES, cache.int4x2_keys_and_values),
}


def inputs_of(overload: str) -> tuple[str, ...]:
    return INPUTS + OVERLOADS[overload][0]


def function_proto(overload: str, opset: int = 24) -> onnx.FunctionProto:
    """`opset` is the standard opset of the model that will carry it: 24 or later, for TensorScatter.

    The cost follows cache_len and not the capacity. Scores, softmax and weighted sums are float32 whatever the dtype
    of q; `out` has the dtype of q. Everything is read from prefix_out, prefix_lse and masses before their new values
    are written, so a caller may bind each of the three outputs to the memory of its input.
    """
    body = FunctionBody()
    _prefix_visibility(body)
    OVERLOADS[overload][1](body)
    _attend_prefix(body)
    _keep(body)
    _measure(body)
    _attend_window(body)
    _merge(body)
    return helper.make_function(
        DOMAIN,
        OPERATOR,
        inputs_of(overload),
        OUTPUTS,
        body.nodes,
        [helper.make_opsetid("", opset)],
        attribute_protos=[helper.make_attribute("scale", 0.0)],
        overload=overload,
        doc_string="attention of a window to chosen pages of a cache or kept results, and to itself, block-causal",
    )


def node(
    overload: str, inputs: Sequence[str], outputs: Sequence[str], *, scale: float = 0.0, name: str = ""
) -> onnx.NodeProto:
    """A call of the function, for the exporter. Inputs in the order of inputs_of(overload), outputs of OUTPUTS."""
    assert len(inputs) == len(inputs_of(overload)) and len(outputs) == len(OUTPUTS)
    return helper.make_node(OPERATOR, inputs, outputs, name=name, domain=DOMAIN, overload=overload, scale=scale)


def _prefix_visibility(body: FunctionBody) -> None:
    """kv_len int64 [1]: the positions of the pages that hold keys, of one page at least, so that no reduction is over
    nothing. positions int64 [kv_len] and is_chosen bool [n_kv_heads, 1, kv_len]. Sizes int64 [1]."""
    body.dim("q", 1, "n_heads"), body.dim("q", 2, "q_len"), body.dim("q", 3, "head_dim")
    body.dim("k", 1, "n_kv_heads"), body.dim("pages", 1, "n_slots")
    body("Div", "n_heads", "n_kv_heads", name="n_rep")
    body("Max", body.ceil_div(body.dim("k_cache", 2), "n_slots"), "one", name="page_size")
    body("Max", body.ceil_div("cache_len", "page_size"), "one", name="n_pages")
    body("Mul", "n_pages", "page_size", name="kv_len")
    positions = body.positions("zero", "kv_len", "positions")

    before = body("Less", positions, "start")
    behind = body("GreaterOrEqual", positions, body("Add", "start", "q_len"))
    held = body("And", body("Less", positions, "cache_len"), body("Or", before, behind))
    page_chosen = body("Gather", "pages", body("Div", positions, "page_size"), axis=1)
    chosen = body("And", body("Cast", page_chosen, to=TensorProto.BOOL), held)
    body("Unsqueeze", chosen, "one", name="is_chosen")


def _attend_prefix(body: FunctionBody) -> None:
    """queries and prefix_out_fresh [n_kv_heads, n_rep * q_len, head_dim], prefix_lse_fresh [..., 1], and
    prefix_shares [..., kv_len]."""
    query_rows(body, "queries")
    # 0 times what must have no influence, such as NaN, would have one.
    values = body("Where", body("Transpose", "is_chosen", perm=[0, 2, 1]), "values", body.number(0.0))
    _attend(body, "keys", values, "is_chosen", ("prefix_out_fresh", "prefix_lse_fresh", "prefix_shares"))


def _attend(body: FunctionBody, keys: str, values: str, visible: str, names: tuple[str, str, str]) -> None:
    """Results, log-sum-exp and softmax under `names`; zeros, -inf and zeros for a query that sees nothing."""
    out, lse, shares = names
    hidden = body.number(float("-inf"))
    scores = body("MatMul", "queries", body("Transpose", keys, perm=[0, 2, 1]))
    scores = body("Where", visible, scores, hidden)
    largest = body("ReduceMax", scores, "rest")
    sees_nothing = body("Equal", largest, hidden)
    largest = body("Where", sees_nothing, body.number(0.0), largest)
    weights = body("Exp", body("Sub", scores, largest))
    total = body("ReduceSum", weights, "rest")
    body("Add", body("Log", total), largest, name=lse)
    body("Div", weights, body("Where", sees_nothing, body.number(1.0), total), name=shares)
    body("MatMul", shares, values, name=out)


def _keep(body: FunctionBody) -> None:
    """prefix_out_rows, prefix_lse_rows: fresh for active rows, else as stored; is_active [n_kv_heads, n_rep * q_len, 1];
    and the outputs new_prefix_out, new_prefix_lse."""
    axis = body.ints("row_axis", 2)
    n_stored = body("Min", "q_len", body.dim("prefix_lse", 2))
    without_state = body("Concat", "zero", body("Sub", "q_len", n_stored), axis=0)
    per_query_head = body("Tile", "active", body("Concat", "one", "n_rep", axis=0))
    body("Cast", body("Unsqueeze", per_query_head, "rest"), to=TensorProto.BOOL, name="is_active")
    for state, width in (("prefix_out", "head_dim"), ("prefix_lse", "one")):
        stored = body("Slice", state, "zero", n_stored, axis)
        padded = body("Pad", stored, without_state, "", axis)
        by_kv_head = body.reshape(padded, "n_kv_heads", "rest", width)
        body("Where", "is_active", f"{state}_fresh", by_kv_head, name=f"{state}_rows")
        by_head = body.reshape(f"{state}_rows", "one", "n_heads", "q_len", width)
        kept = body("Reshape", body("Slice", by_head, "zero", n_stored, axis), body("Shape", stored))
        body("TensorScatter", state, kept, "zero", axis=2, name=f"new_{state}")


def _measure(body: FunctionBody) -> None:
    """new_masses: every page's share of the prefix attention, the largest over active rows, if it is asked for."""
    by_page = body.reshape("prefix_shares", "n_kv_heads", "rest", "n_pages", "page_size")
    of_page = body("ReduceSum", by_page, "rest", keepdims=0)
    largest = body("ReduceMax", body("Where", "is_active", of_page, body.number(0.0)), "one", keepdims=0)
    without_keys = body("Concat", "zero", body("Sub", "n_slots", "n_pages"), axis=0)
    measured = body("Unsqueeze", body("Pad", largest, without_keys, "", "one"), "zero")
    asked = body("Equal", body("Gather", "policy", "zero"), body.ints("measuring_mode", DENSE_KEEP))
    body("Where", asked, measured, "masses", name="new_masses")


def _attend_window(body: FunctionBody) -> None:
    """window_out and window_lse, shaped like those of the prefix."""
    keys, values = (body("Squeeze", body.float32(x), "zero") for x in ("k", "v"))
    block = body("Div", body.positions("start", body("Add", "start", "q_len")), "attn_block")
    visible = body("LessOrEqual", block, body("Unsqueeze", block, "one"))
    by_row = body("Tile", visible, body("Concat", "n_rep", "one", axis=0))
    _attend(body, keys, values, by_row, ("window_out", "window_lse", "window_shares"))


def _merge(body: FunctionBody) -> None:
    """out = share * prefix + (1 - share) * window, where share = 1 / (1 + e^(window_lse - prefix_lse))."""
    odds = body("Exp", body("Sub", "window_lse", "prefix_lse_rows"))
    share = body("Reciprocal", body("Add", odds, body.number(1.0)))
    other = body("Sub", body.number(1.0), share)
    merged = body("Add", body("Mul", share, "prefix_out_rows"), body("Mul", other, "window_out"))
    attended_rows(body, merged, "out")
