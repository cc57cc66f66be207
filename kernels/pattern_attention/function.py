"""PatternAttention as an ONNX function of standard operators: what runs where the native kernel is not.

It answers to reference.py. Every position attends to all others and what the pattern leaves out is masked: correct, and
no cheaper than dense attention. The choice of a pattern is computed in every mode and kept in one.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from dlm_edge.kernels.function_body import FunctionBody
from dlm_edge.kernels.library import DOMAIN
from dlm_edge.kernels.prefix_block_attention.function import attended_rows, query_rows
from dlm_edge.kernels.select_pages.function import POLICY, largest
from dlm_edge.kernels.select_pages.reference import DENSE_KEEP, REUSE_PAGES

OPERATOR = "PatternAttention"
INPUTS = ("q", "k", "v", "policy", "pattern")
OUTPUTS = ("out", "new_pattern", "stats")


def function_proto(opset: int = 24) -> onnx.FunctionProto:
    """`opset` is the standard opset of the model that will carry it.

    Scores, softmax and sums are float32 whatever the dtype of q; `out` has the dtype of q. The pattern is read before
    its new value is written, so a caller may bind the output to the memory of the input.
    """
    body = FunctionBody()
    _sizes(body)
    _attend(body)
    _choose(body)
    _count(body)
    _keep(body)
    return helper.make_function(
        DOMAIN,
        OPERATOR,
        INPUTS,
        OUTPUTS,
        body.nodes,
        [helper.make_opsetid("", opset)],
        attribute_protos=[helper.make_attribute("scale", 0.0)],
        doc_string="attention of a sequence to itself over kept pairs of blocks",
    )


def _sizes(body: FunctionBody) -> None:
    """Numbers of the policy and sizes, int64 [1]; block_of int64 [q_len]; is_keep, is_reuse bool [1]."""
    for field in ("mode", "n_pages", "n_active", "sink", "page_size"):
        body("Gather", "policy", body.ints(f"{field}_index", POLICY.index(field)), name=field)
    body("Equal", "mode", body.ints("keep_mode", DENSE_KEEP), name="is_keep")
    body("Equal", "mode", body.ints("reuse_mode", REUSE_PAGES), name="is_reuse")
    body.dim("q", 1, "n_heads"), body.dim("q", 2, "q_len"), body.dim("k", 1, "n_kv_heads")
    body.dim("pattern", 2, "n_slots"), body.ceil_div("q_len", "page_size", "n_blocks")
    body("Div", body.positions("zero", "q_len"), "page_size", name="block_of")


def _attend(body: FunctionBody) -> None:
    """The output `out`, and weights [n_heads, q_len, q_len]: the softmax over what is read, zeros where that is nothing."""
    by_query = body("Gather", "pattern", "block_of", axis=1)
    kept = body("Cast", body("Gather", by_query, "block_of", axis=2), to=TensorProto.BOOL)
    is_read = body("Or", kept, body("Not", "is_reuse"))
    keys, values = (body("Squeeze", body.float32(x), "zero") for x in ("k", "v"))
    scores = body("MatMul", query_rows(body), body("Transpose", keys, perm=[0, 2, 1]))
    hidden = body.number(float("-inf"))
    scores = body("Where", is_read, body.reshape(scores, "n_heads", "q_len", "q_len"), hidden)
    largest = body("ReduceMax", scores, "rest")
    shift = body("Where", body("Equal", largest, hidden), body.number(0.0), largest)
    weights = body("Exp", body("Sub", scores, shift))
    total = body("ReduceSum", weights, "rest")
    nothing = body("Equal", total, body.number(0.0))
    body("Div", weights, body("Where", nothing, body.number(1.0), total), name="weights")
    attended_rows(body, body("MatMul", body.reshape("weights", "n_kv_heads", "rest", "q_len"), values), "out")


def _choose(body: FunctionBody) -> None:
    """chosen float32 [n_heads, n_blocks, n_blocks]. All rows of a block share its length, so sums over them will do."""
    blocks = body.positions("zero", "n_blocks")
    members = body.float32(body("Equal", body("Unsqueeze", "block_of", "one"), blocks))  # [q_len, n_blocks]
    by_rows = body("MatMul", body("Transpose", members, perm=[1, 0]), body("MatMul", "weights", members))
    means = body("Div", by_rows, body("ReduceSum", members, "zero", keepdims=0))
    is_prompt = body("Less", blocks, "sink")
    regions = []
    for is_inside, count in ((is_prompt, "n_pages"), (body("Not", is_prompt), "n_active")):
        ranked = body("Where", is_inside, means, body.number(float("-inf")))
        regions.append(body("And", largest(body, ranked, body("Min", count, "n_blocks")), is_inside))
    body.float32(body("Or", *regions), "chosen")


def _count(body: FunctionBody) -> None:
    """The output stats, and n_kept float32 [1]: pairs of the pattern as it came."""
    ends = body("Concat", "n_blocks", "n_blocks", axis=0)
    used = body("Slice", "pattern", body.ints("corner", 0, 0), ends, body.ints("slot_axes", 1, 2))
    body.reshape(body("ReduceSum", body.float32(used), keepdims=0), "one", name="n_kept")
    whole = body.float32(body("Mul", "n_heads", body("Mul", "n_blocks", "n_blocks")))
    read = body("Where", "is_reuse", "n_kept", whole)
    rows = body.float32(body("Mul", "n_kv_heads", "q_len"))
    body("Concat", rows, read, whole, body.float32("zero"), axis=0, name="stats")


def _keep(body: FunctionBody) -> None:
    """The output new_pattern. The number of empty slots waits for the counts, so that they are read before."""
    waited = body("Mul", body("Cast", "n_kept", to=TensorProto.INT64), "zero")
    empty = body("Add", body("Sub", "n_slots", "n_blocks"), waited)
    ends = body("Concat", "zero", "zero", empty, empty, axis=0)
    padded = body("Pad", "chosen", ends, "", body.ints("block_axes", 1, 2))
    body("Where", "is_keep", body("Cast", padded, to=TensorProto.UINT8), "pattern", name="new_pattern")
