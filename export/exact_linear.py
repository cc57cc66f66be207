"""QLinear without its rounding of rows, as a function of standard operators: what `exact_twin` puts in its place.

It unpacks the weight at every run, so it is written for that: tiles are taken apart in pieces of four k, which stay together,
and each field of the bytes is a product of its own.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from dlm_edge.kernels.function_body import FunctionBody
from dlm_edge.kernels.library import DOMAIN
from dlm_edge.kernels.qlinear import function
from dlm_edge.kernels.qlinear.layout import COLUMNS

OPERATOR = "ExactLinear"
OUTPUTS_AT_ONCE = 8192  # a multiple of a tile


def exact_linear(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A call of the function below, with the inputs and attributes of a QLinear node; several, one after the other, where
    the weight has many outputs, so that little of it is in float at a time."""
    sizes = {attribute.name: attribute for attribute in node.attribute}
    n_outputs = sizes["out_features"].i
    if n_outputs <= OUTPUTS_AT_ONCE:
        return [called(node, list(node.input), node.output[0], n_outputs)]
    nodes, parts = list[onnx.NodeProto](), list[str]()
    for begin in range(0, n_outputs, OUTPUTS_AT_ONCE):
        end, part = min(begin + OUTPUTS_AT_ONCE, n_outputs), f"{node.output[0]}_from_{begin}"
        inputs = [node.input[0]]
        for name, value in zip(function.INPUTS[1:], node.input[1:], strict=True):
            first, last = (begin, end) if name == "bias" else (begin // COLUMNS, -(-end // COLUMNS))
            inputs.append(value if name == "outlier_columns" else f"{part}_{name}")
            if name != "outlier_columns":
                nodes += rows_of(value, first, last, inputs[-1])
        nodes.append(called(node, inputs, part, end - begin))
        parts.append(part)
    return [*nodes, helper.make_node("Concat", parts, [node.output[0]], axis=-1)]


def called(node: onnx.NodeProto, inputs: list[str], output: str, n_outputs: int) -> onnx.NodeProto:
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    twin.op_type, twin.name = OPERATOR, output
    del twin.input[:], twin.output[:]
    twin.input.extend(inputs)
    twin.output.append(output)
    next(attribute for attribute in twin.attribute if attribute.name == "out_features").i = n_outputs
    return twin


def rows_of(value: str, begin: int, end: int, output: str) -> list[onnx.NodeProto]:
    """A slice of the first axis. Of an input that is absent, which has no rows, it is absent too."""
    bounds = [f"{output}_{name}" for name in ("begin", "end")]
    nodes = [
        helper.make_node("Constant", [], [name], value_ints=[at]) for name, at in zip(bounds, (begin, end), strict=True)
    ]
    return [*nodes, helper.make_node("Slice", [value, *bounds], [output])]


def exact_function(of: onnx.FunctionProto) -> onnx.FunctionProto:
    """The function for all calls of one overload of QLinear, which says of which form the weight is."""
    head, *flags = of.overload.split("_")
    bits, zero = int(head[-1]), head[:-1]
    body = FunctionBody()
    for name in function.ATTRIBUTES:
        if name not in ("bits", "gated"):
            body.int_attribute(name)
    function.flat_rows(body, "gated" in flags)
    x = "rows"
    if "outliers" in flags:
        ones = body.float32(body.filled(1, TensorProto.INT64, "in_features"))
        none = body.float32(body.filled(0, TensorProto.INT64, body("Shape", "outlier_columns")))
        x = body("Mul", x, body("ScatterElements", ones, "outlier_columns", none, axis=0))
    y = _product(body, x, bits, zero)
    if "outliers" in flags:
        chosen = body("Gather", "rows", "outlier_columns", axis=1)
        y = body("Add", y, body("MatMul", chosen, function.tile_values(body, "outlier_weights", "outlier_table")))
    if "bias" in flags:
        y = body("Add", y, "bias")
    body.reshape(y, "lead", "out_features", name="y")
    return helper.make_function(
        DOMAIN, OPERATOR, function.INPUTS, ["y"], body.nodes, list(of.opset_import), attributes=list(of.attribute),
        overload=of.overload, doc_string="rows times a weight of integer codes, in float",
    )  # fmt: skip


def _product(body: FunctionBody, x: str, bits: int, zero: str) -> str:
    """float32 [n, out_features] of x [n, in_features]."""
    n_fields, vectors = 8 // bits, body.dim("codes", 1, name="vectors")
    columns, four, fields = body.ints("", COLUMNS), body.ints("", 4), body.ints("", n_fields)
    filled = body("Mul", vectors, body.ints("", 4 * n_fields))
    missing = body("Concat", body.ints("", 0, 0, 0), body("Sub", filled, "in_features"), axis=0)
    by_field = body.reshape(body("Pad", x, missing), body.dim(x, 0), vectors, fields, four)
    scales, zeros = _by_vector(body, "scales", n_fields), _zeros(body, bits, zero, n_fields)
    total = ""
    for i in range(n_fields):
        codes = _field(body, bits, i)
        weight = body.reshape(codes, body.dim("codes", 0), vectors, columns, four)
        weight = body("Mul", body("Sub", weight, zeros), scales)
        weight = body.reshape(body("Transpose", weight, perm=[0, 2, 1, 3]), "rest", body("Mul", vectors, four))
        index = body("Constant", value=helper.make_tensor("field", TensorProto.INT64, [], [i]))
        part = body.reshape(body("Gather", by_field, index, axis=2), body.dim(x, 0), body("Mul", vectors, four))
        product = body("Gemm", part, weight, transB=1)
        total = body("Add", total, product) if total else product
    return body("Slice", total, "zero", "out_features", "one")


def _field(body: FunctionBody, bits: int, i: int) -> str:
    """float32, of the same shape as the bytes: their field `i`."""
    if bits == 8:
        return body.float32("codes")
    shift = body("Constant", value=helper.make_tensor("shift", TensorProto.UINT8, [], [i * bits]))
    mask = body("Constant", value=helper.make_tensor("mask", TensorProto.UINT8, [], [2**bits - 1]))
    return body.float32(body("BitwiseAnd", body("BitShift", "codes", shift, direction="RIGHT"), mask))


def _zeros(body: FunctionBody, bits: int, zero: str, n_fields: int) -> str:
    if zero == "middle":
        return body.number(float(1 << (bits - 1)))
    return _by_vector(body, "zeros" if zero == "integer" else "float_zeros", n_fields)


def _by_vector(body: FunctionBody, tiles: str, n_fields: int) -> str:
    """float32 [tiles, vectors, 16, 1] of values in tiles [tiles, groups, 16]: no vector lies in two groups."""
    start, step = body("Squeeze", "zero", "zero"), body("Squeeze", "one", "zero")
    first = body("Mul", body("Range", start, body("Squeeze", "vectors", "zero"), step), body.ints("", 4 * n_fields))
    last = body("Sub", body.dim(tiles, 1), "one")
    group = body("Min", body("Div", first, "group_size"), last)  # what fills up belongs to the last group
    return body("Unsqueeze", body.float32(body("Gather", tiles, group, axis=1)), "rest")
