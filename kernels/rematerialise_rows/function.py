"""RematerialiseRows as ONNX functions of standard operators, one overload for each axis and number of bits.

The body is that of DequantizeRows, a cast and a MatMul. It does not call DequantizeRows: ONNX Runtime does not find an
overload that a function of the model calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from dlm_edge.kernels.dequantize_rows import function as dequantize_rows
from dlm_edge.kernels.dequantize_rows.function import overload
from dlm_edge.kernels.dequantize_rows.reference import Axis
from dlm_edge.kernels.function_body import FunctionBody
from dlm_edge.kernels.library import DOMAIN

OPERATOR = "RematerialiseRows"
INPUTS = (*dequantize_rows.INPUTS, "weight")
OUTPUTS = ("product",)


def node(inputs: Sequence[str], output: str, *, bits: int, axis: Axis, name: str = "") -> onnx.NodeProto:
    """A call of the function, for the exporter. Inputs in the order of INPUTS."""
    assert len(inputs) == len(INPUTS)
    return helper.make_node(
        OPERATOR, inputs, [output], name=name, domain=DOMAIN, overload=overload(bits, axis), bits=bits, axis=axis
    )


def function_proto(bits: int, axis: Axis, opset: int = 24) -> onnx.FunctionProto:
    """`opset` as in dequantize_rows/function.py. The product has the dtype of the weight, float32 or float16."""
    body = FunctionBody()
    values = body("CastLike", dequantize_rows.dequantized(body, bits, axis), "weight")
    body("MatMul", values, "weight", name="product")
    return helper.make_function(
        DOMAIN,
        OPERATOR,
        INPUTS,
        OUTPUTS,
        body.nodes,
        [helper.make_opsetid("", opset)],
        attribute_protos=[helper.make_attribute("bits", bits), helper.make_attribute("axis", axis)],
        overload=overload(bits, axis),
        doc_string=f"rows of {bits}-bit codes with one scale per {axis} and group, times a matrix",
    )
