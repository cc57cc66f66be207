"""DequantizeRows as ONNX functions of standard operators, one overload for each axis and number of bits.

They travel inside the model and answer to reference.py, which also says what the layouts are.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from dlm_edge.kernels.dequantize_rows.reference import Axis
from dlm_edge.kernels.function_body import FunctionBody
from dlm_edge.kernels.library import DOMAIN

OPERATOR = "DequantizeRows"
INPUTS = ("codes", "scale", "low", "tail", "rows", "cache_len")
OUTPUTS = ("values",)


def overload(bits: int, axis: Axis) -> str:
    return f"{axis}_{bits}"


def node(inputs: Sequence[str], output: str, *, bits: int, axis: Axis, name: str = "") -> onnx.NodeProto:
    """A call of the function, for the exporter. Inputs in the order of INPUTS."""
    assert len(inputs) == len(INPUTS)
    return helper.make_node(
        OPERATOR, inputs, [output], name=name, domain=DOMAIN, overload=overload(bits, axis), bits=bits, axis=axis
    )


def function_proto(bits: int, axis: Axis, opset: int = 24) -> onnx.FunctionProto:
    """`opset` is the standard opset of the model that will carry it (23 or later).

    Only the rows asked for are read, so the cost follows their number and not the capacity. A function cannot choose
    its nodes by an attribute: `bits` and `axis` are there for a native kernel, and the overload says them again.
    """
    body = FunctionBody()
    dequantized(body, bits, axis, "values")
    return helper.make_function(
        DOMAIN,
        OPERATOR,
        INPUTS,
        OUTPUTS,
        body.nodes,
        [helper.make_opsetid("", opset)],
        attribute_protos=[helper.make_attribute("bits", bits), helper.make_attribute("axis", axis)],
        overload=overload(bits, axis),
        doc_string=f"rows of {bits}-bit codes with one scale per {axis} and group, in float32",
    )


def dequantized(body: FunctionBody, bits: int, axis: Axis, name: str = "") -> str:
    """float32 [n, width], from the INPUTS by their names."""
    in_tail, code_rows, tail_rows = _split_rows(body)
    fields = _unpack(body, body("Gather", "codes", code_rows, axis=0), bits)
    exact = body("Gather", _never_empty(body), tail_rows, axis=0)
    decoded = (_scaled_by_row if axis == "token" else _scaled_by_group)(body, fields, code_rows)
    return body("Where", body("Unsqueeze", in_tail, "one"), exact, decoded, name=name)


def _byte(body: FunctionBody, value: int) -> str:
    return body("Constant", value=helper.make_tensor("", TensorProto.UINT8, [], [value]))


def _split_rows(body: FunctionBody) -> tuple[str, str, str]:
    """Which rows lie in the tail, and for either part the rows to read: the first one where it is the other part's."""
    n_tail = body("Max", body.dim("tail", 0), "one")  # without a tail: n = cache_len, as for one of a single row
    n = body("Mul", body("Div", "cache_len", n_tail), n_tail)
    in_tail = body("GreaterOrEqual", "rows", n)
    return in_tail, body("Where", in_tail, "zero", "rows"), body("Where", in_tail, body("Sub", "rows", n), "zero")


def _never_empty(body: FunctionBody) -> str:
    """The tail and one row more, so that there is something to gather where there is no tail."""
    return body("Pad", "tail", body.ints("one_row_more", 0, 0, 1, 0))


def _unpack(body: FunctionBody, packed: str, bits: int) -> str:
    """float32 [n, width] of uint8 [n, width * bits / 8]."""
    if bits == 8:
        return body.float32(packed)
    if bits != 3:
        return body.float32(_fields(body, packed, bits))
    n_bytes = body.dim(packed, 1)
    third = body("Div", n_bytes, body.ints("three", 3))
    low = _fields(body, body("Slice", packed, "zero", body("Sub", n_bytes, third), "one"), 2)
    high = _fields(body, body("Slice", packed, body("Sub", n_bytes, third), n_bytes, "one"), 1)
    return body.float32(body("BitwiseOr", low, body("BitShift", high, _byte(body, 2), direction="LEFT")))


def _fields(body: FunctionBody, packed: str, bits: int) -> str:
    """uint8 [n, m * 8 / bits] of bytes [n, m], lowest bits first."""
    mask, per_byte = _byte(body, 2**bits - 1), 8 // bits
    parts = []
    for i in range(per_byte):
        shifted = body("BitShift", packed, _byte(body, i * bits), direction="RIGHT") if i else packed
        field = body("BitwiseAnd", shifted, mask) if i < per_byte - 1 else shifted
        parts.append(body("Unsqueeze", field, "rest"))
    count = body("Mul", body.dim(packed, 1), body.ints("", per_byte))
    return body.reshape(body("Concat", *parts, axis=-1), body.dim(packed, 0), count)


def _scaled_by_row(body: FunctionBody, fields: str, rows: str) -> str:
    scale, low = (body.float32(body("Gather", part, rows, axis=0)) for part in ("scale", "low"))
    n_groups, flat = body.dim("scale", 1), body("Shape", fields)
    group = body("Div", body.dim(fields, 1), n_groups)
    grouped = body.reshape(fields, body.dim(fields, 0), n_groups, group)
    scaled = body("Mul", grouped, body("Unsqueeze", scale, "rest"))
    return body("Reshape", body("Add", scaled, body("Unsqueeze", low, "rest")), flat)


def _scaled_by_group(body: FunctionBody, fields: str, rows: str) -> str:
    group = body("Div", body.dim("codes", 0), body.dim("scale", 0))
    of_group = body("Div", rows, group)
    scale, low = (body.float32(body("Gather", part, of_group, axis=0)) for part in ("scale", "low"))
    return body("Add", body("Mul", fields, scale), low)
