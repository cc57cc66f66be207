"""QLinear as ONNX functions of standard operators, one overload for each form of weight.

They travel inside the model and answer to reference.py: the same integers, and the same roundings in the same order but
for the outliers, whose product is a MatMul. Codes and zeros are constants of the model, so a runtime unpacks them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from dlm_edge.kernels.function_body import FunctionBody
from dlm_edge.kernels.library import DOMAIN
from dlm_edge.kernels.qlinear.inputs import LinearInputs, ZeroInput
from dlm_edge.kernels.qlinear.layout import COLUMNS
from dlm_edge.kernels.qlinear.rounding import rounded_rows

OPERATOR = "QLinear"
INPUTS = ("x", "codes", "scales", "zeros", "float_zeros", "bias", "outlier_columns", "outlier_weights")
ATTRIBUTES = ("in_features", "out_features", "bits", "group_size")
FLAGS = ("gated", "row_blocks")  # attributes too: 0 or 1, and 0 of a node without them


def overload(
    bits: int,
    zero: ZeroInput,
    *,
    whole: bool,
    bias: bool,
    outliers: bool,
    gated: bool = False,
    row_blocks: bool = False,
) -> str:
    """`whole`: one group, that is one scale for each output."""
    flags = {"whole": whole, "bias": bias, "outliers": outliers, "gated": gated, "blocks": row_blocks}
    return "_".join([f"{zero}{bits}", *(name for name, flag in flags.items() if flag)])


def node(
    inputs: Sequence[str],
    output: str,
    weight: LinearInputs,
    *,
    in_features: int,
    out_features: int,
    bits: int,
    group_size: int,
    gated: bool = False,
    row_blocks: bool = False,
    name: str = "",
) -> onnx.NodeProto:
    """A call of the function that fits `weight`, for the exporter. Inputs in the order of INPUTS.

    `gated`: x is [.., 2 * in_features], the outputs of a gate and of an up projection, and silu(gate) * up is multiplied.
    `row_blocks`: a row is rounded with a scale for each group of the weight.
    """
    assert len(inputs) == len(INPUTS)
    chosen = overload(
        bits,
        weight.zero,
        whole=group_size >= in_features,
        bias=len(weight.bias) > 0,
        outliers=len(weight.outlier_columns) > 0,
        gated=gated,
        row_blocks=row_blocks,
    )
    values = (in_features, out_features, bits, group_size, int(gated), int(row_blocks))
    sizes: dict[str, Any] = dict(zip(ATTRIBUTES + FLAGS, values, strict=True))
    return helper.make_node(OPERATOR, inputs, [output], name=name, domain=DOMAIN, overload=chosen, **sizes)


def function_proto(
    bits: int,
    zero: ZeroInput,
    *,
    whole: bool,
    bias: bool,
    outliers: bool,
    gated: bool = False,
    row_blocks: bool = False,
    opset: int = 24,
) -> onnx.FunctionProto:
    """`opset` is the standard opset of the model that will carry it (23 or later)."""
    chosen = overload(bits, zero, whole=whole, bias=bias, outliers=outliers, gated=gated, row_blocks=row_blocks)
    has_blocks = row_blocks and not whole
    body = FunctionBody()
    for name in ATTRIBUTES:
        if name != "bits":
            body.int_attribute(name)
    flat_rows(body, gated)
    rounded_rows(body, outliers, has_blocks)
    _unpacked(body, bits)
    tile_values(body, "scales", "scale_table")
    if zero != "middle":
        tile_values(body, "zeros" if zero == "integer" else "float_zeros", "zero_table")
    else:
        middle = helper.make_tensor("middle", TensorProto.UINT8, [], [1 << (bits - 1)])
        body("Constant", value=middle, name="middle_code")
    _whole_sum(body, zero) if whole else _group_sums(body, zero, has_blocks)
    y = "total" if has_blocks else body("Mul", "total", "row_scale")
    if outliers:
        columns = body("Gather", "rows", "outlier_columns", axis=1)
        y = body("Add", y, body("MatMul", columns, tile_values(body, "outlier_weights", "outlier_table")))
    if bias:
        y = body("Add", y, "bias")
    body.reshape(y, "lead", "out_features", name="y")
    return helper.make_function(
        DOMAIN,
        OPERATOR,
        INPUTS,
        ["y"],
        body.nodes,
        [helper.make_opsetid("", opset)],
        attributes=[*ATTRIBUTES, *FLAGS],
        overload=chosen,
        doc_string=f"int8 rows times a weight of {bits} bits",
    )


def flat_rows(body: FunctionBody, gated: bool) -> None:
    """Sets "rows" [n, in_features], "lead" the other dimensions of x, and "is_finite" [n, 1]."""
    body("Slice", body("Shape", "x"), "zero", "rest", name="lead")
    count = body("ReduceProd", "lead", keepdims=1)
    if gated:
        width = body("Add", "in_features", "in_features")
        both = body.reshape("x", count, width)
        gate = body("Slice", both, "zero", "in_features", "one")
        # Not Sigmoid, which in ONNX Runtime takes everything below -18 for -18. exp may overflow: x / infinity is 0.
        one = body.number(1.0)
        silu = body("Div", gate, body("Add", body("Exp", body("Neg", gate)), one))
        body("Mul", silu, body("Slice", both, "in_features", width, "one"), name="rows")
    else:
        body.reshape("x", count, "in_features", name="rows")
    # Counted from the front: reductions of no rows take no notice of axes below 0 in ONNX Runtime.
    mark = body("ReduceSum", body("Sub", "rows", "rows"), "one", keepdims=1)
    body("Not", body("IsNaN", mark), name="is_finite")


def _unpacked(body: FunctionBody, bits: int) -> None:
    """Sets "weight" uint8 [in_features, out_features], from tiles: layout.py."""
    tiles, vectors = body.dim("codes", 0), body.dim("codes", 1)
    columns, four = body.ints("", COLUMNS), body.ints("", 4)
    fields = []
    for shift in range(0, 8, bits):
        by = body("Constant", value=helper.make_tensor("shift", TensorProto.UINT8, [], [shift]))
        mask = body("Constant", value=helper.make_tensor("mask", TensorProto.UINT8, [], [2**bits - 1]))
        field = body("BitwiseAnd", body("BitShift", "codes", by, direction="RIGHT"), mask)
        fields.append(body.reshape(field, tiles, vectors, columns, "one", four))
    joined = body("Concat", *fields, axis=3)  # tile, vector, output, i, j
    by_k = body("Transpose", joined, perm=[1, 3, 4, 0, 2])
    flat = body.reshape(by_k, body("Mul", vectors, body.ints("", 32 // bits)), body("Mul", tiles, columns))
    ends = body("Concat", "in_features", "out_features", axis=0)
    body("Slice", flat, body.ints("", 0, 0), ends, name="weight")


def tile_values(body: FunctionBody, tiles: str, name: str) -> str:
    """[n, out_features] of values in tiles [tiles, n, 16]; float16 becomes float32."""
    width = body("Mul", body.dim(tiles, 0), body.ints("", COLUMNS))
    flat = body.reshape(body("Transpose", tiles, perm=[1, 0, 2]), body.dim(tiles, 1), width)
    cut = body("Slice", flat, "zero", "out_features", "one")
    return body("Identity", cut, name=name) if tiles == "zeros" else body.float32(cut, name=name)


def _zeros_of(body: FunctionBody, zero: ZeroInput, group: str) -> list[str]:
    """The last inputs of MatMulInteger: integer zeros of a group, a scalar or [out_features]."""
    if zero == "float":
        return []
    return ["middle_code"] if zero == "middle" else [body("Gather", "zero_table", group, axis=0)]


def _scaled(body: FunctionBody, zero: ZeroInput, product: str, row_codes: str, group: str) -> str:
    """A group's part of the sum, from its integer product; `group` is a scalar."""
    values = body.float32(product)
    if zero == "float":
        sums = body("ReduceSum", row_codes, "one", keepdims=1)
        values = body("Sub", values, body("Mul", sums, body("Gather", "zero_table", group, axis=0)))
    return body("Mul", values, body("Gather", "scale_table", group, axis=0))


def _whole_sum(body: FunctionBody, zero: ZeroInput) -> None:
    """Sets "total" [n, out_features], of one group."""
    group = body("Squeeze", "zero", "zero")
    product = body("MatMulInteger", "row_bytes", "weight", "row_zero", *_zeros_of(body, zero, group))
    body("Identity", _scaled(body, zero, product, "row_codes", group), name="total")


def _group_sums(body: FunctionBody, zero: ZeroInput, has_blocks: bool) -> None:
    """The same of several groups, in their order."""
    inner = FunctionBody("group_")
    index = inner("Unsqueeze", "group", "zero")
    begin = inner("Mul", index, "group_size")
    end = inner("Min", inner("Add", begin, "group_size"), "in_features")
    bytes_ = inner("Slice", "row_bytes", begin, end, "one")
    part = inner("Slice", "weight", begin, end, "zero")
    product = inner("MatMulInteger", bytes_, part, "row_zero", *_zeros_of(inner, zero, "group"))
    row_codes = inner("Slice", "row_codes", begin, end, "one") if zero == "float" else ""
    scaled = _scaled(inner, zero, product, row_codes, "group")
    if has_blocks:
        scaled = inner("Mul", scaled, inner("Gather", "row_scale", index, axis=1))
    inner("Add", "sum_before", scaled, name="sum_after")
    inner("Identity", "goes_on", name="goes_on_after")
    graph = helper.make_graph(
        inner.nodes,
        "group",
        [
            helper.make_tensor_value_info("group", TensorProto.INT64, []),
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_before", TensorProto.FLOAT, ["n", "out"]),
        ],
        [
            helper.make_tensor_value_info("goes_on_after", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_after", TensorProto.FLOAT, ["n", "out"]),
        ],
    )
    count = body("Squeeze", body.dim("scales", 1), "zero")
    start = body.float32(body.filled(0, TensorProto.INT64, body.dim("rows", 0), "out_features"))
    body("Loop", count, "", start, body=graph, name="total")
