"""Scales of a linear's inputs that cost nothing: the layer before divides its outputs, the linear multiplies its columns.

    producer   what is divided            consumers   fits
    attn_norm  gain                       q, k, v     always
    v          rows and bias              o           only when every query head has its own v head
    mlp_norm   gain                       gate, up    always
    up         rows                       down        always (silu(gate) * up is linear in up)

The function of the layer stays the same up to the rounding of float32; where the scales are powers of two it stays
the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dlm_edge.families.spec import ModelSpec
from dlm_edge.models.transformer import Layer
from dlm_edge.quant.layer_pass import run_stages
from dlm_edge.quant.states import Batch
from dlm_edge.quant.treatments import Decision

PRODUCERS = {("q", "k", "v"): "attn_norm", ("o",): "v", ("gate", "up"): "mlp_norm", ("down",): "up"}
SMALLEST_SCALE = 1e-4

# layer, linears that read one input, batches, their inputs -> scales [in_features] or None, and the decision with its reason
Choose = Callable[[Layer, tuple[str, ...], list[Batch], list[Tensor]], tuple[Tensor | None, Decision]]


def refusal(linears: tuple[str, ...], spec: ModelSpec) -> str | None:
    """Why no scale can be folded into what comes before these linears; None when it can."""
    if linears == ("o",) and spec.n_kv_heads != spec.n_heads:
        return f"{spec.n_heads} query heads share {spec.n_kv_heads} v heads"
    return None


def fold(layer: Layer, linears: tuple[str, ...], scales: Tensor) -> None:
    """Divide the inputs of `linears` by `scales` [in_features] through their producer, and multiply their columns."""
    assert refusal(linears, layer.spec) is None
    assert torch.isfinite(scales).all() and (scales > 0).all()
    producer = getattr(layer, PRODUCERS[linears])
    if producer.weight.dim() == 1:
        producer.weight.data.div_(scales)
    else:
        producer.weight.data.div_(scales[:, None])
        if producer.bias is not None:
            producer.bias.data.div_(scales)
    for linear in linears:
        getattr(layer, linear).weight.data.mul_(scales)


def scale_groups(
    layer: Layer, spec: ModelSpec, batches: list[Batch], hidden: list[Tensor], choose: Choose
) -> dict[str, list[Decision]]:
    """Let `choose` scale each group of linears in forward order, and fold what it chose; decisions by linear.

    `hidden` stays as it is. Only the inputs of one group are held at a time.
    """
    decisions: dict[str, list[Decision]] = {}
    for linears, inputs in run_stages(layer, spec, batches, list(hidden)):
        refused = refusal(linears, spec)
        decision = Decision("none", refused or "")
        if refused is None:
            held = inputs.hold()
            scales, decision = choose(layer, linears, batches, held)
            if scales is not None:
                fold(layer, linears, scales)
                for n, x in enumerate(held):
                    held[n] = x / scales  # what the folded producer would have given
        decisions |= {linear: [decision] for linear in linears}
    return decisions


def usable_scales(scales: Tensor) -> Tensor:
    """Positive, finite, and balanced around 1 (divided by the geometric mean of the extremes, as AWQ does)."""
    scales = torch.where(torch.isfinite(scales) & (scales > 0), scales, 1.0).clamp_min(SMALLEST_SCALE)
    return scales / (scales.max() * scales.min()).sqrt()


def columns_of(layer: Layer, linears: tuple[str, ...]) -> Tensor:
    """The weights [sum of out_features, in_features] of linears that read the same input."""
    return torch.cat([getattr(layer, linear).weight.data for linear in linears])
