# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Values of given rows and columns of a quantized matrix, laid out as kernels/dequantize_rows/reference.py says."""

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]


@triton.jit
def load_rows(
    codes,  # uint8 [capacity, width * BITS / 8]
    row_scale,  # float16, like row_low: [capacity, width / group], or [capacity / group, width] if CHANNEL
    row_low,
    tail,  # float32 [n_tail, width]
    row,  # int64, and int32 `columns`: of shapes that broadcast, or a scalar row
    columns,
    width,
    group,
    n_tail,
    cache_len,
    BITS: tl.constexpr,
    CHANNEL: tl.constexpr,
):
    """float32; zeros, and nothing is read, where the row is outside [0, cache_len) or the column beyond the width."""
    stored_end = cache_len
    if n_tail > 0:
        stored_end = cache_len // n_tail * n_tail
    coded = columns < tl.where((row >= 0) & (row < stored_end), width, 0)
    in_tail = columns < tl.where((row >= stored_end) & (row < cache_len), width, 0)
    at = row * (width * BITS // 8)
    if BITS == 3:  # a plane of two low bits, then a plane of high bits
        low_bits = tl.load(codes + at + columns // 4, mask=coded, other=0).to(tl.int32) >> (columns % 4 * 2) & 3
        high_bit = tl.load(codes + at + width // 4 + columns // 8, mask=coded, other=0).to(tl.int32)
        code = low_bits | ((high_bit >> (columns % 8) & 1) << 2)
    else:
        per_byte: tl.constexpr = 8 // BITS
        packed = tl.load(codes + at + columns // per_byte, mask=coded, other=0).to(tl.int32)
        code = packed >> (columns % per_byte * BITS) & ((1 << BITS) - 1)
    if CHANNEL:
        at_scale = row // group * width + columns
    else:
        at_scale = row * (width // group) + columns // group
    scale = tl.load(row_scale + at_scale, mask=coded, other=0.0).to(tl.float32)
    low = tl.load(row_low + at_scale, mask=coded, other=0.0).to(tl.float32)
    exact = tl.load(tail + (row - stored_end) * width + columns, mask=in_tail, other=0.0)
    return tl.where(in_tail, exact, code.to(tl.float32) * scale + low)
