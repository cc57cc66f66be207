# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The k largest of a row of numbers, the first ones among equals: without sorting."""

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]


@triton.jit
def ordered_bits(values):
    """Unsigned integers in the order of the floats; NaN below all, and both zeros the same."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)
    signed = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    ordered = signed.to(tl.uint32, bitcast=True) ^ 0x80000000
    return tl.where(values == values, ordered, tl.zeros_like(ordered))


@triton.jit
def largest(keys, held, wanted):
    """Which of the `held` keys, from `ordered_bits`, are among the `wanted` largest; all where there are not more.

    The wanted-th largest key is found bit by bit from the top, with 32 counts; then all above it are taken, and of
    those equal to it the first ones.
    """
    threshold = tl.zeros((), tl.uint32)  # becomes the largest one that at least `wanted` keys reach
    for bit in range(32):
        candidate = threshold | (tl.full((), 1, tl.uint32) << (31 - bit))
        reached = tl.sum((held & (keys >= candidate)).to(tl.int32))
        threshold = tl.where(reached >= wanted, candidate, threshold)
    above = held & (keys > threshold)
    equal = (held & (keys == threshold)).to(tl.int32)
    return above | ((equal != 0) & (tl.cumsum(equal, 0) <= wanted - tl.sum(above.to(tl.int32))))
