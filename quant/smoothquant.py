"""SmoothQuant (Xiao et al. 2022, arXiv 2211.10438): part of what makes activations hard to round goes into the weights.

Equation 4: s = max|x|^a / max|w|^(1 - a) per input channel, folded into whatever comes before. The paper sets a = 0.5
(0.8 for hard models); here a is searched per group of linears, by the error of their int8 products on calibration
tokens, and no scale at all is one of the candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_edge.families.spec import ModelSpec
from dlm_edge.models.int8_linear import round_to_int8
from dlm_edge.models.transformer import Layer
from dlm_edge.quant.folding import columns_of, refusal, scale_groups, usable_scales
from dlm_edge.quant.int8_outlier import Int8Config, outlier_columns, row_grid, split_decision
from dlm_edge.quant.int8_outlier import quantize_whole as quantize
from dlm_edge.quant.layer_pass import run_stages
from dlm_edge.quant.rotation import Rotation
from dlm_edge.quant.states import Batch
from dlm_edge.quant.treatments import Decision, settled
from dlm_edge.quantized import dequantize

__all__ = ["Int8Config", "dequantize", "int8_treatments", "prepare", "prepare_for_split", "quantize"]

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
JUDGED_TOKENS = 512  # evenly spread over the calibration tokens that carry weight
JUDGED_ROWS = 512  # output channels, evenly spread
WORTH_WHILE = 0.98  # of the error without; above this a scale is chance
WORTH_TURNING = 0.8  # a rotation replaces v and o as a whole, for what has to be more than chance


def prepare(
    layer: Layer, spec: ModelSpec, batches: list[Batch], hidden: list[Tensor], config: Int8Config
) -> dict[str, list[Decision]]:
    """Smooth every group of linears whose producer can take the scale; the layer's function stays."""
    return _smooth(layer, spec, batches, hidden, None)


def prepare_for_split(
    layer: Layer, spec: ModelSpec, batches: list[Batch], hidden: list[Tensor], config: Int8Config
) -> dict[str, list[Decision]]:
    """As `prepare`, for linears whose outlier columns are kept apart afterwards: both are judged together. Where no scale
    fits in front of `o`, the heads are rotated between v and o if that is better than splitting alone."""
    turned = [turn_heads(layer, spec, batches, hidden, config)] if refusal(("o",), spec) is not None else []
    decisions = _smooth(layer, spec, batches, hidden, config)
    decisions["o"] += turned
    return decisions


def int8_treatments(
    layer: Layer, spec: ModelSpec, batches: list[Batch], hidden: list[Tensor], config: Int8Config
) -> dict[str, list[str]]:
    """What the recipe w8a8 records for each linear, decided by its own code; `layer` is prepared, not rounded."""
    decisions, found = prepare_for_split(layer, spec, batches, hidden, config), dict[str, list[str]]()
    for linears, inputs in run_stages(layer, spec, batches, list(hidden)):
        split = split_decision(channel_maxima(batches, inputs.hold()), config)
        found |= {linear: settled([*decisions[linear], split]) for linear in linears}
    return found


def turn_heads(
    layer: Layer, spec: ModelSpec, batches: list[Batch], hidden: list[Tensor], config: Int8Config
) -> Decision:
    """Fold the per-head rotation of rotation.py into v and o where it lowers the int8 error of `o`."""
    stages = run_stages(layer, spec, batches, list(hidden))
    next(stages)
    inputs = next(stages)[1].hold()
    rotation, weight = Rotation.of(spec, seed=0), layer.o.weight.data
    x, token_weights = sample_tokens(batches, inputs)
    judged = weight[:: max(1, len(weight) // JUDGED_ROWS)]
    turned = [rotation.each_head(part, spec.head_dim).float() for part in inputs]
    plain = int8_error(x, token_weights, judged, channel_maxima(batches, inputs), config)
    turned_x, _ = sample_tokens(batches, turned)
    turned_weight = rotation.each_head(judged, spec.head_dim).float()
    error = int8_error(turned_x, token_weights, turned_weight, channel_maxima(batches, turned), config)
    if not error < WORTH_TURNING * plain:
        return Decision("none", f"heads rotated: int8 error {change(error, plain)}")
    rotation.turn_heads(layer)
    return Decision("rotate", f"heads between v and o, int8 error {change(error, plain)}")


def _smooth(
    layer: Layer, spec: ModelSpec, batches: list[Batch], hidden: list[Tensor], split: Int8Config | None
) -> dict[str, list[Decision]]:
    def choose(
        layer: Layer, linears: tuple[str, ...], batches: list[Batch], inputs: list[Tensor]
    ) -> tuple[Tensor | None, Decision]:
        return search_scales(columns_of(layer, linears), batches, inputs, split)

    return scale_groups(layer, spec, batches, hidden, choose)


def search_scales(
    weight: Tensor, batches: list[Batch], inputs: list[Tensor], split: Int8Config | None
) -> tuple[Tensor | None, Decision]:
    """Scales [in_features] for weights [out, in] that read `inputs`, or None when no scale is better."""
    largest = channel_maxima(batches, inputs)
    x, token_weights = sample_tokens(batches, inputs)
    judged = weight[:: max(1, len(weight) // JUDGED_ROWS)]
    weight_max = weight.abs().amax(0).clamp_min(1e-12)
    plain = least = int8_error(x, token_weights, judged, largest, split)
    best, chosen = None, 0.0
    for strength in STRENGTHS:
        scales = usable_scales(largest**strength / weight_max ** (1 - strength))
        error = int8_error(x / scales, token_weights, judged * scales, largest / scales, split)
        if error < least:
            best, least, chosen = scales, error, strength
    if best is None:
        return None, Decision("none", "no scale lowers the int8 error")
    if least > WORTH_WHILE * plain:
        return None, Decision("none", f"smoothed: int8 error {change(least, plain)} at best")
    return best, Decision("smooth", f"strength {chosen:g}, int8 error {change(least, plain)}")


def change(after: float, before: float) -> str:
    return f"{after / before - 1:+.1%}" if before > 0 else f"{after:.1e} after {before:.1e}"


def channel_maxima(batches: list[Batch], inputs: list[Tensor]) -> Tensor:
    """[in]: the largest |x| of any token that carries weight."""
    counted = ((batch.weights > 0, x) for batch, x in zip(batches, inputs, strict=True))
    return torch.stack([x[where].abs().amax(0) for where, x in counted if where.any()]).amax(0)


def sample_tokens(batches: list[Batch], inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Inputs [tokens, in] and their weights [tokens], evenly spread over those that carry weight."""
    counted = sum(int((batch.weights > 0).sum()) for batch in batches)
    every, x_parts, weight_parts, seen = max(1, counted // JUDGED_TOKENS), [], [], 0
    for batch, x in zip(batches, inputs, strict=True):
        index = torch.nonzero(batch.weights > 0, as_tuple=True)
        chosen = slice((-seen) % every, None, every)
        seen += len(index[0])
        x_parts.append(x[index[0][chosen], index[1][chosen]])
        weight_parts.append(batch.weights[index[0][chosen], index[1][chosen]])
    return torch.cat(x_parts), torch.cat(weight_parts)


def int8_error(x: Tensor, token_weights: Tensor, weight: Tensor, largest: Tensor, split: Int8Config | None) -> float:
    """Weighted squared error of x W^T when both are rounded to int8: x [tokens, in] per token, weight [out, in] per row."""
    rest_x, rest_w = x, weight
    if split is not None:
        columns, _ = outlier_columns(largest, split)
        rest_x, rest_w = x.index_fill(1, columns, 0), weight.index_fill(1, columns, 0)
    grid = row_grid(rest_w)
    rounded = grid.decode(grid.encode(rest_w[:, None]))[:, 0]
    difference = round_to_int8(rest_x) @ rounded.T - rest_x @ rest_w.T
    return float((difference.square().sum(1) * token_weights).double().sum())
