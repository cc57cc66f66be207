"""silu(gate) * up in float32, step by step: what QLinear takes for its rows where it is `gated`.

Every step is one rounding, so that kernels without a library's exp give the same bits. With e = exp(-|x|), which cannot
overflow, silu(x) = x * (1 or e) / (1 + e). e is below 1 ulp off, silu below 4. Below -87, silu(x) is -0; NaN and
infinity of gate or up make the product NaN or infinite.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LOG2_E = np.float32(1.44269504)
LN2_HIGH, LN2_LOW = np.float32(0.693145752), np.float32(1.42860677e-06)  # times an integer below 2**10, high is exact
TO_INTEGER = np.float32(12582912)  # 1.5 * 2**23: adding it rounds to an integer, and leaves that in the low bits
SMALLEST_EXPONENT = np.float32(-87)
# exp(r) = 1 + r + r**2 * polynomial(r) for |r| <= log(2) / 2, relative error 3e-9 before rounding; highest power first.
POLYNOMIAL = tuple(np.float32(c) for c in (0.00138145348, 0.00836874545, 0.0416683927, 0.166665211, 0.49999994))


def exp_negative(x: Floats) -> Floats:
    """exp(x) for x <= 0, and 0 below -87."""
    shifted = x * LOG2_E + TO_INTEGER
    n = shifted - TO_INTEGER
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = POLYNOMIAL[0]
    for c in POLYNOMIAL[1:]:
        p = p * r + c
    p = (p * (r * r) + r) + np.float32(1)
    power = np.ldexp(np.float32(1), np.where(x >= SMALLEST_EXPONENT, n, 0).astype(np.int32))
    return np.where(x < SMALLEST_EXPONENT, np.float32(0), p * power)


def silu(x: Floats) -> Floats:
    with np.errstate(invalid="ignore", over="ignore"):  # 0 * infinity is a NaN that is wanted
        e = exp_negative(-np.abs(x))
        y: Floats = x * (np.where(x < 0, e, np.float32(1)) / (np.float32(1) + e))
    return y


def gated_rows(x: Floats) -> Floats:
    """From gate and up [.., 2 * n], side by side, to silu(gate) * up [.., n]."""
    gate, up = np.split(x, 2, axis=-1)
    with np.errstate(invalid="ignore", over="ignore"):
        rows: Floats = silu(gate) * up
    return rows
