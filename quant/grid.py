"""Symmetric grids with one signed scale per group: value = code * scale, code in [-2^(bits-1), 2^(bits-1) - 1].

The code range has one step more on its negative side. A negative scale turns it round, so the side that
needs the extra code always has it (the "full range" form of AutoRound), and no zero point is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dlm_edge.errors import UsageProblem
from dlm_edge.quantized import QuantizedTensor, container_bits, pack

BITS = (2, 3, 4, 8)
GROUP_SIZES = (16, 32, 64, 128, 256)
# Below this a float16 scale is off by more than 0.8 %; such a tensor keeps float32 scales.
SMALLEST_HALF_SCALE = 2.0**-18
LARGEST_HALF_SCALE = 65504.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Which fractions of the range scale are tried for each group, and the error they are judged by.

    The error is sum(weight * |difference|^power); power 2.4 is that of the GPTQ code's "mse" option.
    """

    candidates: int = 40
    smallest: float = 0.4
    power: float = 2.0


def check_grid(bits: int, group_size: int) -> None:
    if bits not in BITS:
        raise UsageProblem("E-QUANT", f"bits must be one of {BITS}, got {bits}", "4 is the usual choice")
    if group_size not in GROUP_SIZES:
        raise UsageProblem("E-QUANT", f"group size must be one of {GROUP_SIZES}, got {group_size}", "64 is usual")


def check_fits(name: str, in_features: int, group_size: int) -> None:
    if in_features % group_size:
        message = f"{name}: in_features {in_features} is not a multiple of group size {group_size}"
        hint = f"choose a smaller --group-size, or keep this layer in float with --skip '{name}'"
        raise UsageProblem("E-QUANT", message, hint)


def code_range(bits: int) -> tuple[int, int]:
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def range_scales(groups: Tensor, bits: int) -> Tensor:
    """The smallest signed scale for which no value of the group is further than half a step from a code.

    groups [..., group_size] -> [...]; 1 for a group of zeros.
    """
    lowest, highest = code_range(bits)
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


def encode(groups: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Nearest codes, as floats: groups [..., group_size], scales [...]."""
    lowest, highest = code_range(bits)
    return (groups / scales[..., None]).round_().clamp_(lowest, highest)


def choose_scales(groups: Tensor, bits: int, search: Search | None, importance: Tensor | None = None) -> Tensor:
    """Float16-valued scales of groups [rows, n_groups, group_size]; `importance` [n_groups, group_size] weighs columns.

    Without a search: the range scale. With one: the fraction of it, of either sign, with the least error.
    """
    widest = range_scales(groups, bits)
    if search is None:
        return round_scales(widest)
    best = round_scales(widest)
    least = grid_error(groups, best, bits, search.power, importance)
    for fraction in torch.linspace(search.smallest, 1.0, search.candidates).tolist():
        for sign in (1.0, -1.0):
            scales = round_scales(widest * (sign * fraction))
            error = grid_error(groups, scales, bits, search.power, importance)
            better = error < least
            best, least = torch.where(better, scales, best), torch.where(better, error, least)
    return torch.where((groups == 0).all(-1), 1.0, best)


def grid_error(groups: Tensor, scales: Tensor, bits: int, power: float, importance: Tensor | None) -> Tensor:
    difference = (groups - encode(groups, scales, bits) * scales[..., None]).abs_().pow_(power)
    return (difference if importance is None else difference * importance).sum(-1)


def pack_codes(codes: Tensor, scales: Tensor, bits: int) -> QuantizedTensor:
    """Signed codes [out, in] around the container's zero, packed."""
    zero = 2 ** (container_bits(bits) - 1)
    unsigned: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = (codes + zero).to(torch.uint8).numpy()
    return pack(unsigned, scales.numpy().astype(np.float32), bits)
