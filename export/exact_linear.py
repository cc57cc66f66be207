"""QLinear without its rounding of rows, as a function of standard operators: what `exact_twin` puts in its place."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from dlm_edge.kernels.function_body import FunctionBody
from dlm_edge.kernels.library import DOMAIN
from dlm_edge.kernels.qlinear import function

OPERATOR = "ExactLinear"


def exact_linear(node: onnx.NodeProto) -> onnx.NodeProto:
    """A call of the function below, with the inputs and attributes of a QLinear node."""
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    twin.op_type = OPERATOR
    return twin


def exact_function(of: onnx.FunctionProto) -> onnx.FunctionProto:
    """The function for all calls of one overload of QLinear, which says of which form the weight is."""
    head, *flags = of.overload.split("_")
    bits, zero = int(head[-1]), head[:-1]
    body = FunctionBody()
    for name in function.ATTRIBUTES:
        if name not in ("bits", "gated"):
            body.int_attribute(name)
    function._flat_rows(body, "gated" in flags)
    x = "rows"
    if "outliers" in flags:
        ones = body.float32(body.filled(1, TensorProto.INT64, "in_features"))
        none = body.float32(body.filled(0, TensorProto.INT64, body("Shape", "outlier_columns")))
        x = body("Mul", x, body("ScatterElements", ones, "outlier_columns", none, axis=0))
    y = body("MatMul", x, _weight(body, bits, zero))
    if "outliers" in flags:
        chosen = body("Gather", "rows", "outlier_columns", axis=1)
        y = body("Add", y, body("MatMul", chosen, function._values(body, "outlier_weights", "outlier_table")))
    if "bias" in flags:
        y = body("Add", y, "bias")
    body.reshape(y, "lead", "out_features", name="y")
    return helper.make_function(
        DOMAIN, OPERATOR, function.INPUTS, ["y"], body.nodes, list(of.opset_import), attributes=list(of.attribute),
        overload=of.overload, doc_string="rows times a weight of integer codes, in float",
    )  # fmt: skip


def _weight(body: FunctionBody, bits: int, zero: str) -> str:
    """float32 [in_features, out_features]."""
    function._unpacked(body, bits)
    start, step = body("Squeeze", "zero", "zero"), body("Squeeze", "one", "zero")
    columns = body("Range", start, body("Squeeze", "in_features", "zero"), step)
    group = body("Div", columns, "group_size")
    weight = body.float32("weight")
    if zero == "middle":
        weight = body("Sub", weight, body.number(float(1 << (bits - 1))))
    else:
        table = function._values(body, "zeros" if zero == "integer" else "float_zeros", "zero_table")
        weight = body("Sub", weight, body.float32(body("Gather", table, group, axis=0)))
    return body("Mul", weight, body("Gather", function._values(body, "scales", "scale_table"), group, axis=0))
