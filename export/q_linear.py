"""Packed weights as QLinear nodes: one weight, or several with the same input side by side as one product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.export.nodes import GraphBuilder
from dlm_edge.kernels import DOMAIN
from dlm_edge.kernels.qlinear import function
from dlm_edge.kernels.qlinear.inputs import LinearInputs, can_run, linear_inputs
from dlm_edge.kernels.qlinear.layout import COLUMNS
from dlm_edge.quantized import OutlierColumns, QuantizedTensor, container_bits, middle_code, unpack

Floats = NDArray[np.float32]


def runs_as_q_linear(tensor: QuantizedTensor) -> bool:
    return can_run(tensor.shape[1], tensor.group_size, container_bits(tensor.bits))


def q_linear(
    graph: GraphBuilder,
    x: str,
    role: str,
    tensor: QuantizedTensor,
    name: str,
    bias: Floats | None = None,
    *,
    row_blocks: bool,
    gated: bool = False,
) -> str:
    """x [..., in] times the weight [out, in], outlier columns and `bias` [out] included. With `row_blocks` each group of the
    weight's columns has a scale of its own in every row, else a row has one. With `gated` x is [..., 2 in], a gate and
    what it lets through."""
    if tensor.order is not None:
        assert not gated, "the columns of a gated input are not reordered"
        x = graph.add("Gather", [x, graph.weight(role + ".order", tensor.order)], name + "_ordered", axis=-1)
    weight = inputs_of(tensor, bias)
    arrays = {field.name: getattr(weight, field.name) for field in fields(weight)}
    names = [
        graph.shared(f"no_{part}_{'_'.join(map(str, array.shape))}", array)
        if not array.size
        else graph.weight(f"{role}.{part}", array)
        for part, array in arrays.items()
    ]
    bits, has_bias, has_outliers = container_bits(tensor.bits), bias is not None, tensor.outliers is not None
    whole = tensor.group_size >= tensor.shape[1]
    body = function.function_proto(
        bits, weight.zero, whole=whole, bias=has_bias, outliers=has_outliers, gated=gated, row_blocks=row_blocks
    )
    graph.functions.setdefault((body.name, body.overload), body)
    return graph.add(
        function.OPERATOR, [x, *names], name, domain=DOMAIN, overload=body.overload,
        in_features=tensor.shape[1], out_features=tensor.shape[0], bits=bits,
        group_size=tensor.group_size, gated=int(gated), row_blocks=int(row_blocks),
    )  # fmt: skip


def inputs_of(tensor: QuantizedTensor, bias: Floats | None = None) -> LinearInputs:
    """What the operator takes beside x, whose columns are in the packed order."""
    codes, zeros, outliers = in_container(tensor), tensor.zeros, packed_outliers(tensor)
    return linear_inputs(
        codes,
        as_halves(tensor.scales),
        bits=container_bits(tensor.bits),
        zeros=zeros,
        bias=bias,
        outlier_columns=None if outliers is None else outliers.columns,
        outlier_weights=None if outliers is None else outliers.weights,
    )


def in_container(tensor: QuantizedTensor) -> NDArray[np.uint8]:
    """Codes [out, in]; without zeros they stand around the container's middle, which is that of 4 bits for 3."""
    shift = middle_code(container_bits(tensor.bits)) - middle_code(tensor.bits)
    return unpack(tensor) + np.uint8(shift if tensor.zeros is None else 0)


def as_halves(scales: Floats) -> Floats | NDArray[np.float16]:
    """Scales that are float16 numbers take half the room, and are the same."""
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16)
    return halves if np.array_equal(halves.astype(np.float32), scales) else scales


def packed_outliers(tensor: QuantizedTensor) -> OutlierColumns | None:
    """Their places in the packed order, ascending. The operator takes nothing of their codes; what a code adds beside a
    float zero, which it can not stand for exactly, is part of the weight."""
    if tensor.outliers is None:
        return None
    columns, weights = tensor.outliers.columns, tensor.outliers.weights
    if tensor.order is not None:
        columns = np.argsort(tensor.order)[columns]
    if tensor.zeros is not None and tensor.zeros.dtype != np.uint8:
        groups = columns // tensor.group_size
        weights = weights + (unpack(tensor)[:, columns] - tensor.zeros[:, groups]) * tensor.scales[:, groups]
    ascending = np.argsort(columns)
    return OutlierColumns(columns[ascending], weights[:, ascending].astype(np.float32))


def stacked(tensors: Sequence[QuantizedTensor]) -> QuantizedTensor | None:
    """One weight whose outputs are those of all, in that order; None where their forms differ or tiles would not fit."""
    first = tensors[0]
    alike = all(form_of(tensor) == form_of(first) and tensor.shape[0] % COLUMNS == 0 for tensor in tensors)
    if not alike or not runs_as_q_linear(first):
        return None
    outliers = None
    if first.outliers is not None:
        weights = [tensor.outliers.weights for tensor in tensors if tensor.outliers is not None]
        outliers = replace(first.outliers, weights=np.concatenate(weights))
    zeros: list[Any] = [tensor.zeros for tensor in tensors if tensor.zeros is not None]
    return replace(
        first,
        packed=np.concatenate([tensor.packed for tensor in tensors]),
        scales=np.concatenate([tensor.scales for tensor in tensors]),
        zeros=np.concatenate(zeros) if zeros else None,
        outliers=outliers,
    )


def form_of(tensor: QuantizedTensor) -> tuple[object, ...]:
    """What weights have in common that can be one product."""
    order = None if tensor.order is None else tensor.order.tobytes()
    columns = None if tensor.outliers is None else tensor.outliers.columns.tobytes()
    return tensor.bits, tensor.shape[1], tensor.group_size, tensor.zero_kind, order, columns
