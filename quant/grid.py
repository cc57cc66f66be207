"""Uniform grids: value = (code - zero) * scale, one scale and one zero per group, codes 0 ... 2^bits - 1.

symmetric: the zero is the middle code and the scale is signed. The code range has one step more below its middle;
    a negative scale turns it round, so the side that needs the extra code always has it (the "full range" form of
    AutoRound, arXiv 2309.05516), and no zero is stored.
integer: the zero is a code, so that the value 0 is kept exactly.
float: the zero is any number (stored as float16), as decoupleQ (arXiv 2404.12759) wants it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlm_edge.errors import UsageProblem
from dlm_edge.quantized import QuantizedTensor, ZeroKind, middle_code, pack

BITS = (2, 3, 4, 8)
GROUP_SIZES = (16, 32, 64, 128, 256)
ZERO_KINDS = ("symmetric", "integer", "float")
# Below this a float16 scale is off by more than 0.8 %; such a tensor keeps float32 scales.
SMALLEST_HALF_SCALE = 2.0**-18
LARGEST_HALF_SCALE = 65504.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Which fractions of the range are tried for each group, and the error they are judged by.

    The error is sum(weight * |difference|^power); power 2.4 is that of the GPTQ code's "mse" option.
    """

    candidates: int = 40
    smallest: float = 0.4
    power: float = 2.0


@dataclass(frozen=True, slots=True)
class Grid:
    """`scales` and `zeros` [...], one of each per group; `zeros` None: `middle_code(bits)`."""

    scales: Tensor
    zeros: Tensor | None
    bits: int

    def zero(self) -> Tensor | float:
        return float(middle_code(self.bits)) if self.zeros is None else self.zeros[..., None]

    def encode(self, groups: Tensor) -> Tensor:
        """Nearest codes, as floats, of groups [..., group_size]."""
        return (groups / self.scales[..., None] + self.zero()).round_().clamp_(0, 2**self.bits - 1)

    def decode(self, codes: Tensor) -> Tensor:
        return (codes - self.zero()) * self.scales[..., None]

    def error(self, groups: Tensor, power: float, importance: Tensor | None) -> Tensor:
        difference = (groups - self.decode(self.encode(groups))).abs_().pow_(power)
        return (difference if importance is None else difference * importance).sum(-1)

    def where(self, condition: Tensor, other: Grid) -> Grid:
        """This grid where `condition` [...] holds, `other` elsewhere."""
        zeros = None
        if self.zeros is not None and other.zeros is not None:
            zeros = torch.where(condition, self.zeros, other.zeros)
        return Grid(torch.where(condition, self.scales, other.scales), zeros, self.bits)


def check_grid(bits: int, group_size: int, zero: str = "symmetric") -> None:
    if bits not in BITS:
        raise UsageProblem("E-QUANT", f"bits must be one of {BITS}, got {bits}", "4 is the usual choice")
    if group_size not in GROUP_SIZES:
        raise UsageProblem("E-QUANT", f"group size must be one of {GROUP_SIZES}, got {group_size}", "64 is usual")
    if zero not in ZERO_KINDS:
        raise UsageProblem("E-QUANT", f"zero must be one of {', '.join(ZERO_KINDS)}, got {zero}", "symmetric is usual")
    if bits == 8 and zero == "float":
        raise UsageProblem("E-QUANT", "8 bits with a float zero cannot be run", "choose symmetric or integer")


def check_fits(name: str, in_features: int, group_size: int) -> None:
    if in_features % group_size:
        message = f"{name}: in_features {in_features} is not a multiple of group size {group_size}"
        hint = f"choose a smaller --group-size, or keep this layer in float with --skip '{name}'"
        raise UsageProblem("E-QUANT", message, hint)


def choose_grid(
    groups: Tensor, bits: int, zero: ZeroKind, search: Search | None, importance: Tensor | None = None
) -> Grid:
    """The grid of groups [..., n_groups, group_size]; `importance` [n_groups, group_size] weighs columns.

    Without a search: the whole range. With one: that fraction of it with the least error. Scales are float16 values.
    A group of zeros stays exactly zero.
    """
    best = widest = range_grid(groups, bits, zero, 1.0)
    if search is not None:
        least = widest.error(groups, search.power, importance)
        for fraction in torch.linspace(search.smallest, 1.0, search.candidates).tolist():
            for candidate in candidates(groups, bits, zero, fraction, widest):
                error = candidate.error(groups, search.power, importance)
                better = error < least
                best, least = candidate.where(better, best), torch.where(better, error, least)
    return best.where(~(groups == 0).all(-1), empty_grid(best))


def candidates(groups: Tensor, bits: int, zero: ZeroKind, fraction: float, widest: Grid) -> list[Grid]:
    """Symmetric: the scale of either sign. Integer: the neighbouring zeros too, which matter where codes are few."""
    if zero == "symmetric":
        return [Grid(round_scales(widest.scales * (sign * fraction)), None, bits) for sign in (1.0, -1.0)]
    shrunk = range_grid(groups, bits, zero, fraction)
    if zero == "float" or bits > 3:
        return [shrunk]
    assert shrunk.zeros is not None
    shifts = [(shrunk.zeros + shift).clamp(0, 2**bits - 1) for shift in (-1, 0, 1)]
    return [Grid(shrunk.scales, zeros, bits) for zeros in shifts]


def range_grid(groups: Tensor, bits: int, zero: ZeroKind, fraction: float) -> Grid:
    """The grid over `fraction` of the range of each group [..., group_size]."""
    if zero == "symmetric":
        return Grid(round_scales(symmetric_scales(groups, bits) * fraction), None, bits)
    high, low = groups.amax(-1) * fraction, groups.amin(-1) * fraction
    if zero == "integer":
        high, low = high.clamp_min(0), low.clamp_max(0)
    scales = (high - low) / (2**bits - 1)
    scales = round_scales(torch.where(scales == 0, torch.where(low == 0, 1.0, low.abs()), scales))
    zeros = -low / scales
    zeros = zeros.round().clamp(0, 2**bits - 1) if zero == "integer" else round_zeros(zeros)
    return Grid(scales, zeros, bits)


def empty_grid(like: Grid) -> Grid:
    zeros = None if like.zeros is None else torch.zeros_like(like.zeros)
    return Grid(torch.ones_like(like.scales), zeros, like.bits)


def symmetric_scales(groups: Tensor, bits: int) -> Tensor:
    """The smallest signed scale for which no value of the group is further than half a step from a code.

    groups [..., group_size] -> [...]; 1 for a group of zeros.
    """
    lowest, highest = -middle_code(bits), middle_code(bits) - 1
    positive, negative = groups.amax(-1).clamp_min(0), (-groups).amax(-1).clamp_min(0)
    upright = torch.maximum(positive / (highest + 0.5), negative / (0.5 - lowest))
    turned = torch.maximum(negative / (highest + 0.5), positive / (0.5 - lowest))
    scales = torch.where(turned < upright, -turned, upright)
    return torch.where(scales == 0, 1.0, scales)


def round_scales(scales: Tensor) -> Tensor:
    """To float16 values, away from zero, so that the half-step bound survives; as they are when float16 is too coarse."""
    magnitude = scales.abs()
    if magnitude.min() < SMALLEST_HALF_SCALE or magnitude.max() > LARGEST_HALF_SCALE:
        return scales
    half = scales.half()
    too_small = half.float().abs() < magnitude
    bits = half.view(torch.int16) + too_small.to(torch.int16)  # one more in sign-magnitude form is one ulp outwards
    return bits.view(torch.float16).float()


def round_zeros(zeros: Tensor) -> Tensor:
    """To float16 values where they fit."""
    return zeros.half().float() if zeros.abs().max() < LARGEST_HALF_SCALE else zeros


def pack_grid(codes: Tensor, grid: Grid, zero: ZeroKind) -> QuantizedTensor:
    """Codes [out, in] on a grid [out, groups], packed."""
    zeros: NDArray[np.uint8] | NDArray[np.float32] | None = None
    if grid.zeros is not None:
        zeros = grid.zeros.to(torch.uint8).numpy() if zero == "integer" else grid.zeros.numpy().astype(np.float32)
    return pack(codes.to(torch.uint8).numpy(), grid.scales.numpy().astype(np.float32), grid.bits, zeros=zeros)
