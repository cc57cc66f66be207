# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Rows of a quantized matrix in any order: by themselves (DequantizeRows), or times a matrix (RematerialiseRows).

The first writes the rows in float32 for whatever linear nodes follow, which may have quantized weights. The second is
for a float16 matrix: the rows go from their codes straight into the product, and no copy of them through memory.
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from dlm_edge.kernels.triton.row_loads import load_rows


@triton.jit
def dequantize_rows(
    codes,  # as in row_loads.py, like the next three
    row_scale,
    row_low,
    tail,
    rows,  # int64 [n], each in [0, cache_len); others give zeros
    values,  # [n, width], written
    width,
    group,
    n_tail,
    cache_len,
    BITS: tl.constexpr,
    CHANNEL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (n, ceil(width / BLOCK))."""
    place = tl.program_id(0)
    row = tl.load(rows + place)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    found = load_rows(codes, row_scale, row_low, tail, row, columns, width, group, n_tail, cache_len, BITS, CHANNEL)
    tl.store(values + place.to(tl.int64) * width + columns, found, mask=columns < width)


@triton.jit
def rematerialise_rows(
    codes,  # as in row_loads.py, like the next three
    row_scale,
    row_low,
    tail,
    rows,  # int64 [n], each in [0, cache_len); others give zeros
    weight,  # [n_in, n_out]
    product,  # [n, n_out], written, in the type of the weight
    n,
    n_in,
    n_out,
    group,
    n_tail,
    cache_len,
    BITS: tl.constexpr,
    CHANNEL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (ceil(n / BLOCK_M), ceil(n_out / BLOCK_N)): neighbours share a strip of the weight.

    A value is rounded once to the type of the weight, as between two nodes; sums are float32.
    """
    places = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    outputs = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.load(rows + places, mask=places < n, other=-1)[:, None]
    found = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin in range(0, n_in, BLOCK_K):
        inputs = begin + tl.arange(0, BLOCK_K)
        x = load_rows(
            codes, row_scale, row_low, tail, row, inputs[None, :], n_in, group, n_tail, cache_len, BITS, CHANNEL
        )
        held = (inputs < n_in)[:, None] & (outputs < n_out)[None, :]
        strip = tl.load(weight + inputs[:, None] * n_out + outputs[None, :], mask=held, other=0.0)
        found = tl.dot(x.to(strip.dtype), strip, found, input_precision="ieee")
    at = places.to(tl.int64)[:, None] * n_out + outputs[None, :]
    tl.store(product + at, found.to(weight.dtype.element_ty), mask=(places < n)[:, None] & (outputs < n_out)[None, :])
