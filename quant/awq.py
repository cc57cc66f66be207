"""AWQ (Lin et al. 2023, arXiv 2306.00978): input channels that matter are scaled up before rounding, and the scale is
taken back by what comes before; then every group is clipped where that lowers its output error.

Scales are mean|x|^r, alone or over mean|w|^(1 - r) of the weights relative to their group ("duo scaling"), r in 20 steps
from 0; both kinds are tried. Departs from the published code in four ways. The loss is the output error of the
linears themselves, from the second moment of their inputs: it needs no samples and weighs tokens as every other
statistic does. A scale is kept only if the loss is below that of no scale. Where q and k are normalised per head, the
scale in front of them must lower the error of the attention's output too. Clipping is judged by the block of the second
moment that belongs to the group, and grids with a zero are clipped at either end separately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlm_edge.families.spec import ModelSpec
from dlm_edge.models.transformer import Layer
from dlm_edge.quant.folding import columns_of, scale_groups, usable_scales
from dlm_edge.quant.gptq import GptqConfig, column_order
from dlm_edge.quant.grid import Grid, check_fits, check_grid, choose_grid, pack_grid, range_grid, round_scales
from dlm_edge.quant.layer_pass import attention_mix
from dlm_edge.quant.rounded import Rounded
from dlm_edge.quant.states import Batch
from dlm_edge.quant.statistics import InputStatistics, inverse_factor
from dlm_edge.quant.treatments import Decision
from dlm_edge.quantized import ZeroKind, dequantize

__all__ = ["AwqConfig", "dequantize", "prepare", "quantize"]

SCALE_STEPS = 20
JUDGED_ROWS = 512  # output channels that a scale is judged by, evenly spread; all where there are fewer
CHUNK_VALUES = 1 << 22

# What a rounding error costs: [in, in] by the second moment, or [in] for each column by itself.
Judge = Callable[[InputStatistics], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class AwqConfig:
    """`smallest_clip` is the least fraction of a group's range that is tried, in steps of 1 / 20."""

    bits: int = 4
    group_size: int = 64
    zero: ZeroKind = "integer"
    smallest_clip: float = 0.5

    def __post_init__(self) -> None:
        check_grid(self.bits, self.group_size, self.zero)


class GridSettings(Protocol):
    """What the scales are searched for: any configuration with these three."""

    @property
    def bits(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def zero(self) -> ZeroKind: ...


def prepare(
    layer: Layer, spec: ModelSpec, batches: list[Batch], hidden: list[Tensor], config: GridSettings
) -> dict[str, list[Decision]]:
    """Scale the input channels of every group of linears whose producer can take the scale back; the layer's
    function stays. Returns what was done, by linear. Raises E-QUANT, E-NAN."""
    return _scale(layer, spec, batches, hidden, config, lambda inputs: inputs.second_moment.float())


def prepare_for_gptq(
    layer: Layer, spec: ModelSpec, batches: list[Batch], hidden: list[Tensor], config: GptqConfig
) -> dict[str, list[Decision]]:
    """As `prepare`, judged by what GPTQ cannot make up for."""
    return _scale(layer, spec, batches, hidden, config, lambda inputs: uncorrected(inputs, config))


def _scale(
    layer: Layer, spec: ModelSpec, batches: list[Batch], hidden: list[Tensor], config: GridSettings, judge: Judge
) -> dict[str, list[Decision]]:
    def choose(
        layer: Layer, linears: tuple[str, ...], batches: list[Batch], inputs: list[Tensor]
    ) -> tuple[Tensor | None, Decision]:
        scales, decision = search_scales(layer, linears, batches, inputs, config, judge)
        if scales is None or linears != ("q", "k", "v") or not spec.qk_norm:
            return scales, decision
        plain = attention_error(layer, spec, batches, inputs, torch.ones_like(scales), config)
        scaled = attention_error(layer, spec, batches, inputs, scales, config)
        if scaled < plain:
            return scales, Decision("scale", f"{decision.why}, attention {scaled / plain - 1:+.0%}")
        return None, Decision("none", f"scaled: attention error {scaled / plain - 1:+.1%}, q and k are normalised")

    return scale_groups(layer, spec, batches, hidden, choose)


def uncorrected(inputs: InputStatistics, config: GptqConfig) -> Tensor:
    """[in]: what a squared error of each column costs once the later columns have made up what they can, in GPTQ's own
    order: 1 / U_ii^2 with U the factor of the inverse second moment. The diagonal itself where there is no factor."""
    hessian = inputs.hessian()
    hessian.diagonal()[hessian.diagonal() == 0] = 1
    order = column_order(hessian.diagonal(), config)
    factor = inverse_factor(hessian[order][:, order], config.damping)
    if factor is None:
        return hessian.diagonal().float()
    costs = torch.empty(len(order))
    costs[order] = factor.upper.diagonal().square().reciprocal()
    return costs


def search_scales(
    layer: Layer,
    linears: tuple[str, ...],
    batches: list[Batch],
    inputs: list[Tensor],
    config: GridSettings,
    judge: Judge,
) -> tuple[Tensor | None, Decision]:
    """The scales [in_features] with the least output error, or None when no scale is better than none."""
    weight = columns_of(layer, linears)
    check_fits(" ".join(linears), weight.shape[1], config.group_size)
    inputs_seen = InputStatistics(" ".join(linears), weight.shape[1])
    for batch, x in zip(batches, inputs, strict=True):
        inputs_seen.add(x.flatten(0, 1), batch.weights.flatten())
    costs = judge(inputs_seen)
    judged = weight[:: max(1, len(weight) // JUDGED_ROWS)]
    plain = least = scaled_error(judged, torch.ones(weight.shape[1]), costs, config)
    best = None
    for scales in candidate_scales(inputs_seen.absolute_mean(), relative_magnitude(weight, config.group_size)):
        error = scaled_error(judged, scales, costs, config)
        if error < least:
            best, least = scales, error
    if best is None:
        return None, Decision("none", "no scale lowers the output error")
    return best, Decision("scale", f"output error {least / plain - 1:+.0%}")


def candidate_scales(x_mean: Tensor, w_mean: Tensor) -> Iterator[Tensor]:
    for step in range(SCALE_STEPS):
        ratio = step / SCALE_STEPS
        yield usable_scales(x_mean**ratio / (w_mean ** (1 - ratio) + 1e-4))
        if step:
            yield usable_scales(x_mean**ratio)


def relative_magnitude(weight: Tensor, group_size: int) -> Tensor:
    """[in]: the mean over rows of |w| divided by the largest |w| of its group."""
    magnitude = weight.abs().reshape(len(weight), -1, group_size)
    largest = magnitude.amax(-1, keepdim=True).clamp_min(1e-12)
    return (magnitude / largest).mean(0).flatten()


def scaled_error(weight: Tensor, scales: Tensor, costs: Tensor, config: GridSettings) -> float:
    """Error d = W - Q(W s) / s over the whole range of every group: sum of d H d^T with costs H [in, in], of d^2 costs
    with costs [in]."""
    difference = weight - fake_quantized(weight * scales, config) / scales
    if costs.dim() == 1:
        return float((difference.square() @ costs).sum())
    return float(((difference @ costs) * difference).sum())


def fake_quantized(weight: Tensor, config: GridSettings) -> Tensor:
    groups = weight.reshape(len(weight), -1, config.group_size)
    grid = choose_grid(groups, config.bits, config.zero, None)
    return grid.decode(grid.encode(groups)).view_as(weight)


def attention_error(
    layer: Layer, spec: ModelSpec, batches: list[Batch], inputs: list[Tensor], scales: Tensor, config: GridSettings
) -> float:
    """Squared error of the attention block's output with q, k and v rounded under `scales`, over weighted tokens."""
    kept = {linear: getattr(layer, linear).weight.data for linear in ("q", "k", "v")}
    rounded = {linear: fake_quantized(weight * scales, config) / scales for linear, weight in kept.items()}
    total = 0.0
    for batch, x in zip(batches, inputs, strict=True):
        before = attention_mix(layer, spec, batch, x)
        _set_weights(layer, rounded)
        difference = layer.o(attention_mix(layer, spec, batch, x) - before)
        _set_weights(layer, kept)
        total += float((difference.square().sum(-1) * batch.weights).double().sum())
    return total


def _set_weights(layer: Layer, weights: dict[str, Tensor]) -> None:
    for linear, weight in weights.items():
        getattr(layer, linear).weight.data = weight


def quantize(name: str, weight: NDArray[np.float32], config: AwqConfig, inputs: InputStatistics) -> Rounded:
    """Round `weight` [out, in], scaled before by `prepare`, to the nearest code of clipped groups."""
    check_fits(name, weight.shape[1], config.group_size)
    groups = torch.from_numpy(weight).reshape(len(weight), -1, config.group_size)
    blocks = diagonal_blocks(inputs.second_moment, config.group_size).float()
    rows = max(1, CHUNK_VALUES // weight.shape[1])
    parts = [clipped_grid(groups[i : i + rows], blocks, config) for i in range(0, len(groups), rows)]
    grid = join_rows(parts)
    return Rounded(pack_grid(grid.encode(groups).reshape(weight.shape), grid, config.zero))


def diagonal_blocks(hessian: Tensor, group_size: int) -> Tensor:
    """[n_groups, group_size, group_size]"""
    split = hessian.view(len(hessian) // group_size, group_size, -1, group_size)
    return split.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()


def clipped_grid(groups: Tensor, blocks: Tensor, config: AwqConfig) -> Grid:
    """The grid of groups [rows, n_groups, group_size] whose output error is least, group by group.

    First both ends are clipped alike; then, where there is a zero, the lower and the upper end once more by themselves.
    """
    whole = best = choose_grid(groups, config.bits, config.zero, None)
    least = output_errors(groups, best, blocks)
    high = low = torch.ones_like(least)
    steps = [i / 20 for i in range(20, round(20 * config.smallest_clip) - 1, -1)]
    for end in ("both",) if config.zero == "symmetric" else ("both", "low", "high"):
        kept_high, kept_low = high, low
        for step in steps:
            new_high = kept_high if end == "low" else torch.full_like(high, step)
            new_low = kept_low if end == "high" else torch.full_like(low, step)
            for grid in grids_over(groups, new_high, new_low, whole, config):
                error = output_errors(groups, grid, blocks)
                better = error < least
                best, least = grid.where(better, best), torch.where(better, error, least)
                high, low = torch.where(better, new_high, high), torch.where(better, new_low, low)
    return best


def grids_over(groups: Tensor, high: Tensor, low: Tensor, whole: Grid, config: AwqConfig) -> list[Grid]:
    """Grids over the fractions `high` and `low` [rows, n_groups] of the two ends of the range; symmetric: of either sign."""
    if whole.zeros is None:
        return [Grid(round_scales(whole.scales * (sign * high)), None, config.bits) for sign in (1.0, -1.0)]
    ends = torch.stack([groups.amax(-1) * high, groups.amin(-1) * low], -1)
    return [range_grid(ends, config.bits, config.zero, 1.0)]


def output_errors(groups: Tensor, grid: Grid, blocks: Tensor) -> Tensor:
    """[rows, n_groups]: d^T B d with d the rounding error of the group and B its block of the second moment."""
    difference = (groups - grid.decode(grid.encode(groups))).transpose(0, 1)  # [n_groups, rows, group_size]
    return ((difference @ blocks) * difference).sum(-1).T


def join_rows(parts: list[Grid]) -> Grid:
    zeros = None if parts[0].zeros is None else torch.cat([part.zeros for part in parts if part.zeros is not None])
    return Grid(torch.cat([part.scales for part in parts]), zeros, parts[0].bits)
