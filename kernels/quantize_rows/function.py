"""QuantizeRows as ONNX functions of standard operators, one overload for each axis and number of bits.

They travel inside the model and answer to reference.py, to the bit: the grid of a group is computed in float64, like
there. Only the rows asked for are read, so a pass that stores nothing pays for the calls of some nodes over no rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dlm_edge.kernels.dequantize_rows.function import overload
from dlm_edge.kernels.dequantize_rows.reference import Axis
from dlm_edge.kernels.function_body import FunctionBody
from dlm_edge.kernels.library import DOMAIN
from dlm_edge.kernels.quantized_pages.reference import LARGEST

OPERATOR = "QuantizeRows"
INPUTS = ("rows", "count", "group")
SMALLEST_STEP = 2.0**-24  # between float16 numbers


def outputs(axis: Axis) -> tuple[str, ...]:
    return ("codes", "scale", "low", "tail") if axis == "channel" else ("codes", "scale", "low")


def node(inputs: Sequence[str], made: Sequence[str], *, bits: int, axis: Axis, name: str = "") -> onnx.NodeProto:
    """A call of the function, for the exporter. Inputs in the order of INPUTS, outputs in that of `outputs`."""
    assert len(inputs) == len(INPUTS) and len(made) == len(outputs(axis))
    return helper.make_node(
        OPERATOR, inputs, made, name=name, domain=DOMAIN, overload=overload(bits, axis), bits=bits, axis=axis
    )


def function_proto(bits: int, axis: Axis, opset: int = 24) -> onnx.FunctionProto:
    """`opset` is the standard opset of the model that will carry it (23 or later)."""
    body = FunctionBody()
    along, grouped = _groups(body, axis)
    low, divisor = _grid(body, grouped, along, bits)
    steps = body("Div", body("Sub", grouped, low), divisor)
    flat = body.reshape(body("Round", steps), body.dim("rows", 0), "n", body.dim("rows", 2))
    body("Cast", _packed(body, flat, bits), to=TensorProto.UINT8, name="codes")
    return helper.make_function(
        DOMAIN,
        OPERATOR,
        INPUTS,
        outputs(axis),
        body.nodes,
        [helper.make_opsetid("", opset)],
        attribute_protos=[helper.make_attribute("bits", bits), helper.make_attribute("axis", axis)],
        overload=overload(bits, axis),
        doc_string=f"rows to {bits}-bit codes with one scale per {axis} and group",
    )


def _groups(body: FunctionBody, axis: Axis) -> tuple[str, str]:
    """The axis that a group extends along, int64 [1], and the rows split by groups; sets "n", and "tail" of "channel"."""
    if axis == "token":
        n = body("Identity", "count", name="n")
    else:
        n = body("Mul", body("Div", "count", "group"), "group", name="n")
    # Counted from the front: reductions of no rows take no notice of axes below 0 in ONNX Runtime.
    along = body.ints("", 3 if axis == "token" else 2)
    kept = body("Slice", "rows", "zero", n, "one")
    lead, width = body.dim("rows", 0), body.dim("rows", 2)
    if axis == "token":
        return along, body.reshape(kept, lead, n, body("Div", width, "group"), "group")
    body("Slice", "rows", n, "count", "one", name="tail")
    return along, body.reshape(kept, lead, body("Div", n, "group"), "group", width)


def _double(body: FunctionBody, x: str) -> str:
    return body("Cast", x, to=TensorProto.DOUBLE)


def _constant(body: FunctionBody, value: float) -> str:
    return body("Constant", value=numpy_helper.from_array(np.array(value, np.float64)))


def _grid(body: FunctionBody, grouped: str, along: str, bits: int) -> tuple[str, str]:
    """low, and scale or 1 where that is 0, both in float32 and with the group's axis; sets "scale" and "low"."""
    smallest = body("ReduceMin", grouped, along, keepdims=1)
    largest = body("ReduceMax", grouped, along, keepdims=1)
    # 0, or NaN where a value is not finite: what a minimum makes of NaN is left to the runtime.
    mark = body("ReduceSum", body("Sub", grouped, grouped), along, keepdims=1)
    low = _rounded_down(body, _double(body, smallest))
    span = body("Sub", _double(body, largest), _double(body, low))
    negated = body("Div", body("Neg", span), _constant(body, 2**bits - 1))
    scale = body("Neg", _rounded_down(body, negated))
    furthest = body("Max", body("Neg", smallest), largest)
    is_beyond = body("Greater", furthest, body.number(LARGEST))
    marked = body("Add", body("Where", is_beyond, body.number(float("inf")), scale), mark)
    for name, values in (("scale", marked), ("low", low)):
        body("Cast", body("Squeeze", values, along), to=TensorProto.FLOAT16, name=name)
    return low, body("Where", body("Greater", scale, body.number(0.0)), scale, body.number(1.0))


def _rounded_down(body: FunctionBody, x: str) -> str:
    """The largest float16 that is not above x, of float64, as float32.

    A cast may round twice, by way of float32, but never past a float16 number: it gives the one below x or the one above.
    """
    nearest = body.float32(body("Cast", x, to=TensorProto.FLOAT16))
    # 5/8 of the way to the number below, or up to 5/4 where steps are relatively smaller: the cast then rounds to it.
    steps = body("Max", body("Mul", body("Abs", nearest), body.number(5 / 2**13)), body.number(5 / 8 * SMALLEST_STEP))
    below = body.float32(body("Cast", body("Sub", nearest, steps), to=TensorProto.FLOAT16))
    return body("Where", body("Greater", _double(body, nearest), x), below, nearest)


def _packed(body: FunctionBody, fields: str, bits: int) -> str:
    """Bytes as float32 [lead, n, width * bits / 8], of codes [lead, n, width]."""
    if bits != 3:
        return _bytes(body, fields, bits)
    high = body("Floor", body("Mul", fields, body.number(0.25)))
    low = body("Sub", fields, body("Mul", high, body.number(4.0)))
    return body("Concat", _bytes(body, low, 2), _bytes(body, high, 1), axis=-1)


def _bytes(body: FunctionBody, fields: str, bits: int) -> str:
    """Sums of shifted fields, lowest bits first: exact in float32, since none is above 255."""
    per_byte = 8 // bits
    if per_byte == 1:
        return fields
    count = body.ints("", per_byte)
    split = body.reshape(fields, body.dim(fields, 0), "n", body("Div", body.dim(fields, 2), count), count)
    weights = body("Constant", value_floats=[float(2 ** (bits * i)) for i in range(per_byte)])
    return body("ReduceSum", body("Mul", split, weights), body.ints("", 3), keepdims=0)
