"""HQQ: a data-free search of zeros and scales (Badri & Shaji, "Half-Quadratic Quantization of Large ML Models", 2023).

    min over z, e of  |e|_p^p + beta / 2 |e - (W - s (Q(W) - z))|^2,  p = 0.7

The p-norm lets a few weights of a group be far off, so that the others are near. Alternately e by generalized soft
thresholding (their sub-problem 1) and z by a mean (sub-problem 2), while beta grows. Departures: e is measured in
steps of the grid, so that beta does not depend on the size of the weights; the scale is refitted by least squares
with each zero; a group keeps the best grid it has met.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlm_edge.quant.grid import Grid, check_fits, check_grid, choose_grid, pack_grid, round_scales, round_zeros
from dlm_edge.quant.rounded import Rounded
from dlm_edge.quant.statistics import InputStatistics
from dlm_edge.quantized import ZeroKind, dequantize

__all__ = ["HqqConfig", "dequantize", "quantize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HqqConfig:
    """`power`, `beta` and its `growth` are those of the authors' code; a symmetric zero leaves the scale to search."""

    bits: int = 4
    group_size: int = 64
    zero: ZeroKind = "float"
    power: float = 0.7
    beta: float = 10.0
    growth: float = 1.01
    iterations: int = 20
    fit_scale: bool = True

    def __post_init__(self) -> None:
        check_grid(self.bits, self.group_size, self.zero)


def quantize(
    name: str, weight: NDArray[np.float32], config: HqqConfig, inputs: InputStatistics | None = None
) -> Rounded:
    """Quantize `weight` [out_features, in_features] in groups along in_features; `inputs` are not used.

    Raises E-QUANT when in_features is not a multiple of the group size.
    """
    out_features, in_features = weight.shape
    check_fits(name, in_features, config.group_size)
    groups = torch.from_numpy(weight).reshape(out_features, -1, config.group_size)
    grid = search(groups, choose_grid(groups, config.bits, config.zero, None), config)
    return Rounded(pack_grid(grid.encode(groups).reshape(weight.shape), grid, config.zero))


def search(groups: Tensor, grid: Grid, config: HqqConfig) -> Grid:
    """The grid of least sum |W - W'|^power met from `grid` on, for each group [..., group_size] on its own."""
    best, beta = grid, config.beta
    least = grid.error(groups, config.power, None)
    for _ in range(config.iterations):
        codes = grid.encode(groups)
        steps = groups / grid.scales[..., None]
        wanted = steps - shrink(steps - (codes - grid.zero()), beta, config.power)  # W - e, in steps
        grid = refit(codes, wanted, grid, config)
        error = grid.error(groups, config.power, None)
        better = error < least
        best, least = grid.where(better, best), torch.where(better, error, least)
        beta *= config.growth
    return best


def shrink(x: Tensor, beta: float, power: float) -> Tensor:
    """The minimum over e of |e|^p + beta / 2 (e - x)^2 (generalized soft thresholding, first step)."""
    magnitude = x.abs()
    return x.sign() * (magnitude - magnitude.clamp_min(1e-12).pow(power - 1) / beta).clamp_min(0)


def refit(codes: Tensor, wanted: Tensor, grid: Grid, config: HqqConfig) -> Grid:
    """Zero and scale that bring `codes` nearest to `wanted` (in steps of the old scale)."""
    zeros, scales = grid.zeros, grid.scales
    if zeros is not None:
        zeros = (codes - wanted).mean(-1)
        zeros = zeros.round().clamp(0, 2**grid.bits - 1) if config.zero == "integer" else round_zeros(zeros)
    if config.fit_scale:
        centered = codes - Grid(scales, zeros, grid.bits).zero()
        size = centered.square().sum(-1)
        factor = (centered * wanted).sum(-1) / size.clamp_min(1e-12)
        scales = torch.where((size > 0) & (factor > 0), round_scales(scales * factor.clamp_min(1e-3)), scales)
    return Grid(scales, zeros, grid.bits)
