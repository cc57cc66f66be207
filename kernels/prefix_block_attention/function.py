"""PrefixBlockAttention as an ONNX function of standard operators: what runs where the native kernel is not.

The function travels inside every exported model. ONNX Runtime prefers a registered native kernel of the same
name and inlines the function otherwise. It answers to reference.py, like the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import helper

from dlm_edge.kernels.library import DOMAIN

OPERATOR = "PrefixBlockAttention"
OVERLOAD = "dense"
INPUTS = ("q", "k", "v", "k_cache", "v_cache", "start", "cache_len", "attn_block")
OUTPUTS = ("out",)


class _Body:
    """Collects nodes; every method returns the name of a new value."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def __call__(self, op_type: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def ints(self, name: str, *values: int) -> str:
        return self("Constant", name=name, value_ints=list(values))

    def dim(self, tensor: str, axis: int) -> str:
        """One dimension, as int64 [1]."""
        return self("Shape", tensor, start=axis, end=axis + 1)

    def positions(self, begin: str, end: str, zero: str, one: str) -> str:
        """begin .. end - 1, from int64 [1] inputs. Range wants scalars."""
        count = self("Squeeze", self("Sub", end, begin), zero)
        steps = self("Range", self("Squeeze", zero, zero), count, self("Squeeze", one, zero))
        return self("Add", steps, begin)


def function_proto(opset: int = 24) -> onnx.FunctionProto:
    """The overload "dense". `opset` is the standard opset of the model that will carry it (23 or later).

    Only the valid part of the cache is touched, so the cost follows cache_len and not the capacity. Query heads
    that share a key/value head are rows of one product. Scores, softmax and weighted sum are float32 whatever
    the dtype of q; the result has the dtype of q.
    """
    body = _Body()
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


def _keys_and_visibility(body: _Body) -> None:
    """keys, values float32 [n_kv_heads, kv_len, head_dim] and visible bool [q_len, kv_len]."""
    zero, one, axis = body.ints("zero", 0), body.ints("one", 1), body.ints("position_axis", 2)
    q_len = body.dim("q", 2)
    window_end = body("Add", "start", q_len)
    before_end = body("Min", "start", "cache_len")
    # The cache behind the window; empty when the window reaches cache_len.
    after_begin = body("Min", window_end, "cache_len")

    for cache, window, joined in (("k_cache", "k", "keys"), ("v_cache", "v", "values")):
        before = body("Slice", cache, zero, before_end, axis)
        after = body("Slice", cache, after_begin, "cache_len", axis)
        parts = body("Concat", before, window, after, axis=2)
        body("Cast", body("Squeeze", parts, zero), to=onnx.TensorProto.FLOAT, name=joined)

    window_positions = body.positions("start", window_end, zero, one)
    key_positions = body(
        "Concat",
        body.positions(zero, before_end, zero, one),
        window_positions,
        body.positions(after_begin, "cache_len", zero, one),
        axis=0,
    )
    # j < (i // L + 1) * L  <=>  j // L <= i // L
    key_block = body("Div", key_positions, "attn_block")
    query_block = body("Unsqueeze", body("Div", window_positions, "attn_block"), one)
    body("LessOrEqual", key_block, query_block, name="visible")


def _attend(body: _Body) -> None:
    n_heads, n_kv_heads, q_len, head_dim = (
        body.dim("q", 1), body.dim("k", 1), body.dim("q", 2), body.dim("q", 3)
    )  # fmt: skip
    rest = body.ints("rest", -1)

    given = body("Constant", name="given_scale")
    scale_attribute = body.nodes[-1].attribute.add()
    scale_attribute.name, scale_attribute.ref_attr_name = "value_float", "scale"
    scale_attribute.type = onnx.AttributeProto.FLOAT
    usual = body("Reciprocal", body("Sqrt", body("Cast", head_dim, to=onnx.TensorProto.FLOAT)))
    is_default = body("Equal", given, body("Constant", value_float=0.0))
    scale = body("Where", is_default, usual, given)

    # [1, n_heads, q_len, head_dim] -> [n_kv_heads, group * q_len, head_dim]: the same memory
    q32 = body("Mul", body("Cast", "q", to=onnx.TensorProto.FLOAT), scale)
    rows = body("Reshape", q32, body("Concat", n_kv_heads, rest, head_dim, axis=0))
    scores = body("MatMul", rows, body("Transpose", "keys", perm=[0, 2, 1]))
    kv_len = body.dim("keys", 1)
    by_head = body("Reshape", scores, body("Concat", n_heads, q_len, kv_len, axis=0))
    hidden = body("Constant", value_float=float("-inf"))
    weights = body("Softmax", body("Where", "visible", by_head, hidden), axis=-1)
    grouped = body("Reshape", weights, body("Concat", n_kv_heads, rest, kv_len, axis=0))
    mixed = body("MatMul", grouped, "values")

    heads = body("Reshape", mixed, body("Concat", n_heads, q_len, head_dim, axis=0))
    by_position = body("Transpose", heads, perm=[1, 0, 2])
    merged = body("Reshape", by_position, body("Concat", body.ints("batch", 1), q_len, rest, axis=0))
    body("CastLike", merged, "q", name="out")
