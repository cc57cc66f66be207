# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Rows of a quantized matrix in any order: DequantizeRows, which rematerialisation of keys and values reads from.

The layouts are those of kernels/dequantize_rows/reference.py.
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]


@triton.jit
def dequantize_rows(
    codes,  # uint8 [capacity, width * BITS / 8]
    row_scale,  # float16, like row_low: [capacity, width / group], or [capacity / group, width] if CHANNEL
    row_low,
    tail,  # float32 [n_tail, width]
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
    inside = columns < width
    stored_end = cache_len
    if n_tail > 0:
        stored_end = cache_len // n_tail * n_tail
    coded = columns < tl.where((row >= 0) & (row < stored_end), width, 0)
    in_tail = columns < tl.where((row >= stored_end) & (row < cache_len), width, 0)
    codes += row * (width * BITS // 8)
    if BITS == 3:  # a plane of two low bits, then a plane of high bits
        low_bits = tl.load(codes + columns // 4, mask=coded, other=0).to(tl.int32) >> (columns % 4 * 2) & 3
        high_bit = tl.load(codes + width // 4 + columns // 8, mask=coded, other=0).to(tl.int32) >> (columns % 8) & 1
        code = low_bits | (high_bit << 2)
    else:
        per_byte: tl.constexpr = 8 // BITS
        packed = tl.load(codes + columns // per_byte, mask=coded, other=0).to(tl.int32)
        code = packed >> (columns % per_byte * BITS) & ((1 << BITS) - 1)
    if CHANNEL:
        at_scale = row // group * width + columns
    else:
        at_scale = row * (width // group) + columns // group
    scale = tl.load(row_scale + at_scale, mask=coded, other=0.0).to(tl.float32)
    low = tl.load(row_low + at_scale, mask=coded, other=0.0).to(tl.float32)
    found = code.to(tl.float32) * scale + low
    exact = tl.load(tail + (row - stored_end) * width + columns, mask=in_tail, other=0.0)
    tl.store(values + place.to(tl.int64) * width + columns, tl.where(in_tail, exact, found), mask=inside)
