"""SelectPages as an ONNX function of standard operators: what runs where the native kernel is not.

It answers to reference.py. The mode is a value of the tensor `policy`, so every mode's answer is computed and one is
kept: correct, and no cheaper than the dearest mode. In the shapes below `n_rep` query heads share a kv head and their
rows lie one behind another: [n_kv_heads, n_rep * q_len, ...] is the memory of [1, n_heads, q_len, ...]. It takes one copy
of the window.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from dlm_edge.kernels.function_body import FunctionBody
from dlm_edge.kernels.library import DOMAIN
from dlm_edge.kernels.select_pages.reference import REUSE_PAGES, REUSE_ROWS, SELECT, SELECT_ROWS

OPERATOR = "SelectPages"
INPUTS = ("q", "low", "high", "page_scale", "q_last", "q_stored", "masses", "start", "cache_len", "policy", "drift")
OUTPUTS = ("active", "pages", "new_q_last", "new_q_stored", "stats")

# the elements of the input `policy`, in its order
POLICY = ("mode", "n_pages", "n_active", "sink", "recent", "per_head", "since_stored", "one_list", "page_size")


def function_proto(opset: int = 24) -> onnx.FunctionProto:
    """`opset` is the standard opset of the model that will carry it: 24 or later, for TensorScatter.

    Everything is read from q_last and q_stored before their new values are written, so a caller may bind each of the
    two outputs to the memory of its input. Scores and movements are float32 whatever the dtype of q.
    """
    body = FunctionBody()
    _read_policy(body)
    _sizes_and_rows(body)
    _choose_rows(body)
    _choose_pages(body)
    _store_queries(body)
    _count(body)
    return helper.make_function(
        DOMAIN,
        OPERATOR,
        INPUTS,
        OUTPUTS,
        body.nodes,
        [helper.make_opsetid("", opset)],
        doc_string="rows of a window that attend afresh, and the pages of the prefix that they attend to",
    )


def node(inputs: Sequence[str], outputs: Sequence[str], *, name: str = "") -> onnx.NodeProto:
    """A call of the function, for the exporter. Inputs and outputs in the order of INPUTS and OUTPUTS."""
    assert len(inputs) == len(INPUTS) and len(outputs) == len(OUTPUTS)
    return helper.make_node(OPERATOR, inputs, outputs, name=name, domain=DOMAIN)


def _read_policy(body: FunctionBody) -> None:
    """The elements of `policy` under their names, int64 [1], and is_<mode>, is_<flag> bool [1]."""
    for i, field in enumerate(POLICY):
        body("Gather", "policy", body.ints(f"{field}_index", i), name=field)
    modes = {"bounded": SELECT, "reuse_rows": REUSE_ROWS, "reuse_pages": REUSE_PAGES, "select_rows": SELECT_ROWS}
    for mode, value in modes.items():
        body("Equal", "mode", body.ints(f"{mode}_mode", value), name=f"is_{mode}")
    body("Or", "is_bounded", "is_select_rows", name="is_select")
    for flag in ("per_head", "since_stored", "one_list"):
        body("Cast", flag, to=TensorProto.BOOL, name=f"is_{flag}")


def _sizes_and_rows(body: FunctionBody) -> None:
    """n_heads, n_kv_heads, n_rep, q_len, n_slots, n_rows = min(q_len, rows of state), all int64 [1], and
    rows, rows_last, rows_stored [1, n_heads, n_rows, head_dim]: the only values read from the state."""
    body.dim("q", 1, "n_heads"), body.dim("q", 2, "q_len")
    body.dim("low", 1, "n_kv_heads"), body.dim("low", 2, "n_slots")
    body("Div", "n_heads", "n_kv_heads", name="n_rep")
    body("Min", "q_len", body.dim("q_last", 2), name="n_rows")
    axis = body.ints("row_axis", 2)
    for tensor, rows in (("q", "rows"), ("q_last", "rows_last"), ("q_stored", "rows_stored")):
        body("Slice", tensor, "zero", "n_rows", axis, name=rows)


def _choose_rows(body: FunctionBody) -> None:
    """is_active bool [n_kv_heads, q_len]."""
    rows, last, stored = (body.float32(rows) for rows in ("rows", "rows_last", "rows_stored"))
    away = _squared(body, body("Sub", rows, stored))
    moved = body("Where", "is_since_stored", away, _squared(body, body("Sub", rows, last)))
    most = largest(body, moved, body("Min", "n_active", "n_rows"))
    # An infinite drift makes this infinity or, over a stored query of zeros, NaN: nothing is greater.
    drifted = body("Greater", away, body("Mul", "drift", _squared(body, stored)))
    chosen = body("Or", body("Or", most, drifted), body("Not", "is_select"))
    chosen = body("And", chosen, body("Not", "is_reuse_rows"))
    stateless = body.filled(1, TensorProto.BOOL, "n_kv_heads", body("Sub", "q_len", "n_rows"))
    body("Concat", chosen, stateless, axis=1, name="is_active")


def _squared(body: FunctionBody, x: str) -> str:
    """Squared lengths [n_kv_heads, n_rows]: of all query heads of a kv head, or of the layer."""
    by_head = body("ReduceSumSquare", x, "rest", keepdims=0)
    grouped = body.reshape(by_head, "n_kv_heads", "n_rep", "n_rows")
    per_head = body("ReduceSum", grouped, "one", keepdims=0)
    return body("Where", "is_per_head", per_head, body("ReduceSum", per_head, "zero", keepdims=1))


def _choose_pages(body: FunctionBody) -> None:
    """is_page bool [n_kv_heads, n_slots], any_active bool [n_kv_heads, 1] and n_valid int64 [1]."""
    slots = body.positions("zero", "n_slots")
    valid = body("Less", slots, body.ceil_div("cache_len", "page_size", "n_valid"))
    edge = body.ceil_div("start", "page_size")
    recent = body("And", body("Less", slots, edge), body("GreaterOrEqual", slots, body("Sub", edge, "recent")))
    forced = body("And", valid, body("Or", body("Less", slots, "sink"), recent))

    scores = body("Where", "is_bounded", _page_bounds(body), body.reshape("masses", "n_kv_heads", "one", "n_slots"))
    ranked = body("Where", valid, scores, body.number(float("-inf")))
    ranked = body("Where", forced, body.number(float("inf")), ranked)
    picked = body("And", valid, largest(body, ranked, body("Min", "n_pages", "n_slots")))
    # Without bounds all rows have the same scores: the union of the active ones is the choice of any.
    asking = body("Unsqueeze", _per_query_head(body, "is_active"), "rest")
    union = body("Squeeze", body.any(body("And", picked, asking), "one"), "one")
    chosen = body("Or", union, body("And", forced, body.any("is_active", "one", "any_active")))
    chosen = body("Or", chosen, body("And", "is_one_list", body.any(chosen, "zero")))

    chooses = body("Or", "is_select", "is_reuse_pages")
    everything = body("And", valid, body("And", "any_active", body("Not", chooses)))
    body("Or", body("And", chooses, chosen), everything, name="is_page")


def _page_bounds(body: FunctionBody) -> str:
    """[n_kv_heads, n_rep * q_len, n_slots]: the most that q . k can be over the keys of each page."""
    q = body.reshape(body.float32("q"), "n_kv_heads", body("Mul", "n_rep", "q_len"), body.dim("q", 3))
    none = body.number(0.0)
    bounds = []
    for half, end in ((body("Max", q, none), "high"), (body("Min", q, none), "low")):
        ends = body("Transpose", body("Squeeze", body.float32(end), "zero"), perm=[0, 2, 1])
        bounds.append(body("MatMul", half, ends))
    scale = body.reshape(body.float32("page_scale"), "n_kv_heads", "one", "n_slots")
    return body("Mul", body("Add", *bounds), scale)


def largest(body: FunctionBody, values: str, count: str) -> str:
    """True at the `count` largest along the last axis. TopK puts the lower index first among equal ones."""
    indices = f"largest_{len(body.nodes)}"
    body.nodes.append(helper.make_node("TopK", [values, count], [f"{indices}_values", indices], axis=-1))
    found = body.filled(0, TensorProto.BOOL, body("Shape", values))
    marks = body.filled(1, TensorProto.BOOL, body("Shape", indices))
    return body("ScatterElements", found, indices, marks, axis=-1)


def _per_query_head(body: FunctionBody, rows: str) -> str:
    """[n_kv_heads, n] to [n_kv_heads, n_rep * n]."""
    return body("Tile", rows, body("Concat", "one", "n_rep", axis=0))


def _store_queries(body: FunctionBody) -> None:
    fresh = _per_query_head(body, body("Slice", "is_active", "zero", "n_rows", "one"))
    fresh = body.reshape(fresh, "one", "n_heads", "n_rows", "one")
    kept = body("Where", fresh, body("CastLike", "rows", "q_stored"), "rows_stored")
    body("TensorScatter", "q_stored", kept, "zero", axis=2, name="new_q_stored")
    # The rows do not depend on the old ones. The place where they go does, so that the old ones are read before.
    n_active = body("ReduceSum", body("Cast", "is_active", to=TensorProto.INT64), keepdims=0)
    begin = body("Mul", body.reshape(n_active, "one"), "zero")
    body("TensorScatter", "q_last", body("CastLike", "rows", "q_last"), begin, axis=2, name="new_q_last")


def _count(body: FunctionBody) -> None:
    """active, pages uint8, and stats."""
    counts = []
    for chosen, output in (("is_active", "active"), ("is_page", "pages")):
        counts.append(body.reshape(body("ReduceSum", body.float32(chosen), keepdims=0), "one"))
        body("Cast", chosen, to=TensorProto.UINT8, name=output)
    held = body.float32(body("Mul", "n_kv_heads", "n_valid"))
    body("Concat", *counts, held, body.float32("is_bounded"), axis=0, name="stats")
