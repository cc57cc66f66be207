"""Rows to int8 by standard operators: the part of QLinear's function bodies that answers to reference.round_rows."""

from __future__ import annotations

from onnx import TensorProto, helper

from dlm_edge.kernels.function_body import FunctionBody
from dlm_edge.kernels.qlinear.reference import LARGEST_CODE, SMALLEST_SCALE

ROW_ZERO = 128  # of rows as unsigned bytes


def rounded_rows(body: FunctionBody, outliers: bool, has_blocks: bool) -> None:
    """From "rows" and "is_finite": sets "row_codes" [n, in_features] as float32, "row_bytes" as uint8 with ROW_ZERO, and
    "row_scale", [n, 1] or, `has_blocks`, [n, groups]."""
    zero = body.number(0.0)
    rest = body("Where", "is_finite", "rows", zero)
    if outliers:
        ones = body.float32(body.filled(1, TensorProto.INT64, "in_features"))
        none = body.float32(body.filled(0, TensorProto.INT64, body("Shape", "outlier_columns")))
        rest = body("Mul", rest, body("ScatterElements", ones, "outlier_columns", none, axis=0))
    if has_blocks:
        scale = _block_codes(body, rest)
    else:
        scale = _scale_of(body, body("ReduceMax", body("Abs", rest), "one", keepdims=1))
        body("Round", body("Div", rest, scale), name="row_codes")
    shifted = body("Add", "row_codes", body.number(float(ROW_ZERO)))
    body("Cast", shifted, to=TensorProto.UINT8, name="row_bytes")
    body("Constant", value=helper.make_tensor("zero", TensorProto.UINT8, [], [ROW_ZERO]), name="row_zero")
    body("Where", "is_finite", scale, body.number(float("nan")), name="row_scale")


def _scale_of(body: FunctionBody, peak: str) -> str:
    return body("Max", body("Div", peak, body.number(float(LARGEST_CODE))), body.number(float(SMALLEST_SCALE)))


def _block_codes(body: FunctionBody, rows: str) -> str:
    """Sets "row_codes", of a scale for each group; returns the scales [n, groups]."""
    groups, count = body.dim("scales", 1), body.dim(rows, 0)
    width = body("Mul", groups, "group_size")
    rest = body.float32(body.filled(0, TensorProto.INT64, count, body("Sub", width, "in_features")))
    blocks = body.reshape(body("Concat", rows, rest, axis=1), count, groups, "group_size")
    scale = _scale_of(body, body("ReduceMax", body("Abs", blocks), body.ints("", 2), keepdims=1))
    codes = body.reshape(body("Round", body("Div", blocks, scale)), count, width)
    body("Slice", codes, "zero", "in_features", "one", name="row_codes")
    return body.reshape(scale, count, groups)
