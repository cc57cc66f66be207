"""PrefixBlockAttention as an ONNX function of standard operators: what runs where the native kernel is not.

The function travels inside every exported model. ONNX Runtime prefers a registered native kernel of the same
name and inlines the function otherwise. It answers to reference.py, like the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from dlm_edge.kernels.function_body import FunctionBody
from dlm_edge.kernels.library import DOMAIN

OPERATOR = "PrefixBlockAttention"
OVERLOAD = "dense"
INPUTS = ("q", "k", "v", "k_cache", "v_cache", "start", "cache_len", "attn_block")
OUTPUTS = ("out",)


def function_proto(opset: int = 24) -> onnx.FunctionProto:
    """The overload "dense". `opset` is the standard opset of the model that will carry it (23 or later).

    Only the valid part of the cache is touched, so the cost follows cache_len and not the capacity. Query heads
    that share a key/value head are rows of one product. Scores, softmax and weighted sum are float32 whatever
    the dtype of q; the result has the dtype of q. It takes one copy of the window.
    """
    body = FunctionBody()
    _keys_and_visibility(body)
    _attend(body)
    return helper.make_function(
        DOMAIN,
        OPERATOR,
        INPUTS,
        OUTPUTS,
        body.nodes,
        [helper.make_opsetid("", opset)],
        attribute_protos=[helper.make_attribute("scale", 0.0)],
        overload=OVERLOAD,
        doc_string="dense attention of a window to a cache and to itself, block-causal",
    )


def node(inputs: Sequence[str], output: str, *, scale: float = 0.0, name: str = "") -> onnx.NodeProto:
    """A call of the function, for the exporter. Inputs in the order of INPUTS."""
    assert len(inputs) == len(INPUTS)
    return helper.make_node(OPERATOR, inputs, [output], name=name, domain=DOMAIN, overload=OVERLOAD, scale=scale)


def _keys_and_visibility(body: FunctionBody) -> None:
    """keys, values float32 [n_kv_heads, kv_len, head_dim] and visible bool [q_len, kv_len]."""
    axis = body.ints("position_axis", 2)
    q_len = body.dim("q", 2)
    window_end = body("Add", "start", q_len)
    before_end = body("Min", "start", "cache_len")
    # The cache behind the window; empty when the window reaches cache_len.
    after_begin = body("Min", window_end, "cache_len")

    for cache, window, joined in (("k_cache", "k", "keys"), ("v_cache", "v", "values")):
        before = body("Slice", cache, "zero", before_end, axis)
        after = body("Slice", cache, after_begin, "cache_len", axis)
        parts = body("Concat", before, window, after, axis=2)
        body.float32(body("Squeeze", parts, "zero"), joined)

    window_positions = body.positions("start", window_end)
    key_positions = body(
        "Concat",
        body.positions("zero", before_end),
        window_positions,
        body.positions(after_begin, "cache_len"),
        axis=0,
    )
    # j < (i // L + 1) * L  <=>  j // L <= i // L
    key_block = body("Div", key_positions, "attn_block")
    query_block = body("Unsqueeze", body("Div", window_positions, "attn_block"), "one")
    body("LessOrEqual", key_block, query_block, name="visible")


def _attend(body: FunctionBody) -> None:
    scores = body("MatMul", query_rows(body), body("Transpose", "keys", perm=[0, 2, 1]))
    kv_len = body.dim("keys", 1)
    by_head = body.reshape(scores, body.dim("q", 1), body.dim("q", 2), kv_len)
    weights = body("Softmax", body("Where", "visible", by_head, body.number(float("-inf"))), axis=-1)
    grouped = body.reshape(weights, body.dim("k", 1), "rest", kv_len)
    attended_rows(body, body("MatMul", grouped, "values"), "out")


def query_rows(body: FunctionBody, name: str = "") -> str:
    """q times the scale, float32: [1, n_heads, q_len, head_dim] as [n_kv_heads, n_rep * q_len, head_dim], the same
    memory, where n_rep = n_heads / n_kv_heads."""
    head_dim, given = body.dim("q", 3), body.attribute("scale")
    usual = body("Reciprocal", body("Sqrt", body.float32(head_dim)))
    scale = body("Where", body("Equal", given, body.number(0.0)), usual, given)
    return body.reshape(body("Mul", body.float32("q"), scale), body.dim("k", 1), "rest", head_dim, name=name)


def attended_rows(body: FunctionBody, rows: str, name: str) -> str:
    """The way back: [n_kv_heads, n_rep * q_len, head_dim] as [1, q_len, n_heads * head_dim] in the dtype of q."""
    heads = body.reshape(rows, body.dim("q", 1), body.dim("q", 2), body.dim("q", 3))
    by_position = body("Transpose", heads, perm=[1, 0, 2])
    return body("CastLike", body.reshape(by_position, "one", body.dim("q", 2), "rest"), "q", name=name)
