"""Quantize the linears of one layer, each on inputs that have passed everything quantized before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dlm_edge.families.spec import ModelSpec
from dlm_edge.models.transformer import Layer
from dlm_edge.quant.hessian import Hessian
from dlm_edge.quant.layer_pass import LINEARS, run_stages
from dlm_edge.quant.methods import QuantizedLinear, quantize_linear
from dlm_edge.quant.states import Batch
from dlm_edge.quantized import dequantize


def quantize_without_states(
    layer: Layer, names: Mapping[str, str], method: str, config: Any, *, strict: bool
) -> list[QuantizedLinear]:
    """`names` maps the linears to quantize to their tensor names; weights of `layer` stay as they are."""
    return [
        quantize_linear(method, config, linear, names[linear], weight_of(layer, linear), None, strict=strict)
        for linear in LINEARS
        if linear in names
    ]


def quantize_with_states(
    layer: Layer,
    spec: ModelSpec,
    batches: list[Batch],
    hidden: list[Tensor],
    names: Mapping[str, str],
    method: str,
    config: Any,
    *,
    strict: bool,
    zero_nonfinite: bool = False,
) -> list[QuantizedLinear]:
    """As above, with second moments of the inputs; `hidden` and the weights of `layer` advance to the quantized ones."""
    done = []
    for linears, inputs in run_stages(layer, spec, batches, hidden):
        wanted = [linear for linear in linears if linear in names]
        if not wanted:
            continue
        zeroed = replace_nonfinite(inputs) if zero_nonfinite else 0
        hessian = second_moment(names[wanted[0]], batches, inputs)
        for linear in wanted:
            weight = weight_of(layer, linear)
            result = quantize_linear(method, config, linear, names[linear], weight, hessian, strict=strict)
            if zeroed:
                result.record.notes.append(f"{zeroed} NaN or infinite input values counted as zero")
            weight.copy_(torch.from_numpy(dequantize(result.tensor)))
            done.append(result)
    return done


def second_moment(name: str, batches: list[Batch], inputs: list[Tensor]) -> Hessian:
    hessian = Hessian(name, inputs[0].shape[-1])
    for batch, x in zip(batches, inputs, strict=True):
        hessian.add(x.flatten(0, 1), batch.weights.flatten())
    return hessian


def replace_nonfinite(inputs: list[Tensor]) -> int:
    count = sum(int((~torch.isfinite(x)).sum()) for x in inputs)
    if count:
        inputs[:] = [torch.nan_to_num(x, 0.0, 0.0, 0.0) for x in inputs]
    return count


def weight_of(layer: Layer, linear: str) -> Tensor:
    weight: Tensor = getattr(layer, linear).weight.data
    return weight
