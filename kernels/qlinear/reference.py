"""QLinear in plain NumPy: y = x W^T + bias, with x rounded to int8 row by row and W of integer codes in groups.

x                float32 [.., rows, in_features], or, `gated`, [.., rows, 2 * in_features]: gate and up, side by side,
                 for which x stands as silu(gate) * up from then on (gating.py)
codes            uint8, and scales float32 or float16, in tiles: layout.py
zeros            uint8 in tiles: of each group an integer that stands for zero; of no tiles where there are none
float_zeros      float32 in tiles: the same as numbers; without either, zero is the middle code, 2**(bits - 1)
bias             float32 [out_features], or [0]
outlier_columns  int64 [n], strictly ascending: columns of x that are kept in float32, and do not widen a row's grid
outlier_weights  float32 in tiles [tiles, n, 16]

    scale[r]    = max |x[r]| / 127 without the outliers, at least the smallest normal number
    q[r, k]     = x[r, k] / scale[r], rounded to an integer, ties to even; 0 for outliers
    sum[r, n]   = over the groups in ascending order, each step rounded to float32:
                  (sum over k of q[r, k] (code[n, k] - zero[n, g]), exact, as float32) * scales[n, g]
    y[r, n]     = sum[r, n] * scale[r] + (sum over outliers of x[r, c] * weight[n, c]) + bias[n]

With `row_blocks` a row has a scale for each group of the weight, so that a large value takes the grid from its own
group alone. Where there are several groups, the scale then comes in before they are added up:

    scale[r, g] = max |x[r, group g]| / 127 without the outliers, at least the smallest normal number
    sum[r, n]   = over the groups in ascending order, each step rounded to float32:
                  ((integer sum as float32) * scales[n, g]) * scale[r, g]
    y[r, n]     = sum[r, n] + (sum over outliers) + bias[n]

A float zero is taken off after the integer sum of the codes has become float32, as zero * (sum of q[r, k]). Nothing
but the written roundings takes place, so every implementation gives the same bits. A row that holds NaN or infinity
gives NaN everywhere. Groups are `group_size` consecutive k, the last one what is left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlm_edge.kernels.qlinear.gating import gated_rows
from dlm_edge.kernels.qlinear.inputs import Floats, LinearInputs
from dlm_edge.kernels.qlinear.layout import from_tiles, unpack_tiles

LARGEST_CODE = np.float32(127)
SMALLEST_SCALE = np.finfo(np.float32).tiny


def round_rows(
    x: Floats, outlier_columns: NDArray[np.int64], block_size: int | None = None
) -> tuple[NDArray[np.int32], Floats]:
    """q [rows, in_features] and scale [rows, blocks], NaN for rows that are not finite.

    `block_size`: of the consecutive k that share a scale; without it, rows are one block.
    """
    in_features = x.shape[-1]
    size = min(block_size or in_features, in_features)
    rest = x.copy()
    rest[:, outlier_columns] = 0
    finite = np.isfinite(x).all(-1, keepdims=True)
    rest = np.where(finite, rest, np.float32(0))
    peaks = np.maximum.reduceat(np.abs(rest), np.arange(0, in_features, size), axis=-1)
    scale = np.maximum(peaks / LARGEST_CODE, SMALLEST_SCALE)
    q = np.rint(rest / scale.repeat(size, axis=-1)[:, :in_features]).astype(np.int32)
    return q, np.where(finite, scale, np.float32(np.nan))


def qlinear(
    x: Floats,
    weight: LinearInputs,
    *,
    out_features: int,
    bits: int,
    group_size: int,
    gated: bool = False,
    row_blocks: bool = False,
) -> Floats:
    """As the file says; shapes in that order."""
    if gated:
        x = gated_rows(x)
    in_features = x.shape[-1]
    rows = x.reshape(-1, in_features)
    codes = unpack_tiles(weight.codes, bits, out_features, in_features).astype(np.int32)
    scales = from_tiles(weight.scales, out_features).astype(np.float32)
    zeros = from_tiles(weight.zeros, out_features).astype(np.int32) if len(weight.zeros) else None
    float_zeros = from_tiles(weight.float_zeros, out_features) if len(weight.float_zeros) else None
    q, row_scale = round_rows(rows, weight.outlier_columns, group_size if row_blocks else None)
    has_blocks = row_scale.shape[-1] > 1

    total = np.zeros((len(rows), out_features), np.float32)
    for group, begin in enumerate(range(0, in_features, group_size)):
        part = slice(begin, min(begin + group_size, in_features))
        members = codes[:, part]
        if float_zeros is None:
            members = members - (1 << (bits - 1) if zeros is None else zeros[:, group, None])
        products = exact_product(q[:, part], members.T).astype(np.float32)
        if float_zeros is not None:
            products -= q[:, part].sum(-1, keepdims=True).astype(np.float32) * float_zeros[:, group]
        products *= scales[:, group]
        total += products * row_scale[:, group, None] if has_blocks else products
    y = total if has_blocks else total * row_scale
    if len(weight.outlier_columns):
        y += outlier_product(rows, weight, out_features)
    if len(weight.bias):
        y += weight.bias
    return y.reshape(*x.shape[:-1], out_features)


def exact_product(a: NDArray[np.int32], b: NDArray[np.int32]) -> NDArray[np.int32]:
    """Of integers below 2**8 in magnitude: float64 holds all sums exactly, and has a fast product."""
    return np.rint(a.astype(np.float64) @ b.astype(np.float64)).astype(np.int32)


def outlier_product(rows: Floats, weight: LinearInputs, out_features: int) -> Floats:
    weights = from_tiles(weight.outlier_weights, out_features)
    total = np.zeros((len(rows), out_features), np.float32)
    for j, column in enumerate(weight.outlier_columns):
        total += rows[:, column, None] * weights[:, j]
    return total
