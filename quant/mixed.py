"""Bits per layer under a size budget: more where a bit removes more output error.

A multiple-choice knapsack: every layer takes one of its widths, the sum of relative output errors is to be least, and
stored bits (codes, scales and zeros, as they lie in the file) are bounded. Solved exactly, because greedy steps by
error removed per bit leave up to twice the least error where layers differ in size. Layer sizes have large common
divisors, so the table is small; where it would not be, sizes are rounded up by less than a thousandth of the budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dlm_edge.errors import UsageProblem
from dlm_edge.packed_storage import zero_bytes
from dlm_edge.quant.rtn import RtnConfig, quantize
from dlm_edge.quant.statistics import InputStatistics, output_error
from dlm_edge.quant.treatments import Decision
from dlm_edge.quantized import ZeroKind, dequantize

WIDTHS = (2, 3, 4, 8)
SCALE_BITS = FLOAT_ZERO_BITS = 16
LARGEST_TABLE = 1 << 18
PROBE_ROWS = 256  # their relative error is that of the whole weight within a few per cent


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A weight [out, in] and its relative output error (Hessian-weighted) at each width it may take."""

    name: str
    shape: tuple[int, int]
    group_size: int
    zero: ZeroKind
    errors: dict[int, float]

    @property
    def n_weights(self) -> int:
        return self.shape[0] * self.shape[1]

    def stored_bits(self, bits: int) -> int:
        """Codes, float16 scales, and zeros of the kind that this width has."""
        rows, groups = self.shape[0], self.shape[1] // self.group_size
        per_row = {
            "symmetric": 0,
            "float": groups * FLOAT_ZERO_BITS,
            "integer": 8 * zero_bytes(groups, bits),
        }
        return self.n_weights * bits + rows * (groups * SCALE_BITS + per_row[zero_at(bits, self.zero)])


def zero_at(bits: int, zero: ZeroKind) -> ZeroKind:
    """8 bits have no float zero, and need none."""
    return "symmetric" if bits == 8 and zero == "float" else zero


def more_bits(bits: int, mean: float, errors: Mapping[str, float]) -> list[Decision]:
    """The treatment of a weight that takes more than the mean; `errors` by bits, as they were probed."""
    if bits <= mean:
        return []
    fewer = max((b for b in errors if int(b) < bits), key=int)
    why = f"{bits}, the mean is {mean:g}; rounded to nearest: error {errors[str(bits)]:.1e}, with {fewer} {errors[fewer]:.1e}"
    return [Decision("more bits", why)]


def probe_linear(
    name: str, weight: NDArray[np.float32], inputs: InputStatistics, group_size: int, zero: ZeroKind
) -> dict[int, float]:
    """Relative output error of `weight` [out, in] rounded to nearest at each width, on evenly spaced rows."""
    rows = weight[:: max(1, len(weight) // PROBE_ROWS)]
    hessian, exact, errors = inputs.hessian(), torch.from_numpy(rows), {}
    for bits in WIDTHS:
        config = RtnConfig(bits=bits, group_size=group_size, zero=zero_at(bits, zero), search=None)
        errors[bits] = output_error(hessian, exact, torch.from_numpy(dequantize(quantize(name, rows, config))))
    return errors


def allocate(layers: list[Candidate], budget_bits: float) -> dict[str, int]:
    """Width of every layer, so that all of them together take at most `budget_bits` per weight.

    Scales and zeros count. Between equal errors the smaller result wins. Raises E-QUANT when even the narrowest
    widths do not fit.
    """
    n_weights, narrowest = sum(layer.n_weights for layer in layers), [min(layer.errors) for layer in layers]
    least = sum(layer.stored_bits(bits) for layer, bits in zip(layers, narrowest, strict=True))
    left = int(budget_bits * n_weights) - least
    if left < 0:
        message = f"{budget_bits} bits per weight are asked for, the narrowest form takes {least / n_weights:.3f}"
        raise UsageProblem("E-QUANT", message, "raise --bits, or choose a larger --group-size")
    # Bits that each width takes beyond the narrowest one.
    extra = [
        {b: layer.stored_bits(b) - layer.stored_bits(low) for b in sorted(layer.errors)}
        for layer, low in zip(layers, narrowest, strict=True)
    ]
    unit = max(math.gcd(*(size for sizes in extra for size in sizes.values())), -(-left // LARGEST_TABLE), 1)
    units = [{b: -(-size // unit) for b, size in sizes.items()} for sizes in extra]
    widths = knapsack([layer.errors for layer in layers], units, left // unit)
    return {layer.name: bits for layer, bits in zip(layers, widths, strict=True)}


def knapsack(errors: list[dict[int, float]], sizes: list[dict[int, int]], capacity: int) -> list[int]:
    """One width of each layer: the least sum of errors among those whose sizes sum to `capacity` at most.

    Dynamic programming: least[c] is the least error of the layers so far within c units.
    """
    least, choices = np.zeros(capacity + 1), []
    for error, size in zip(errors, sizes, strict=True):
        best, choice = np.full(capacity + 1, np.inf), np.zeros(capacity + 1, np.uint8)
        for bits in sorted(error):
            if size[bits] > capacity:
                continue
            found = least[: capacity + 1 - size[bits]] + error[bits]
            better = found < best[size[bits] :]
            best[size[bits] :][better] = found[better]
            choice[size[bits] :][better] = bits
        least = best
        choices.append(choice)
    at, widths = int(least.argmin()), []  # the first minimum is the smallest
    for choice, size in zip(reversed(choices), reversed(sizes), strict=True):
        widths.append(int(choice[at]))
        at -= size[widths[-1]]
    return widths[::-1]
