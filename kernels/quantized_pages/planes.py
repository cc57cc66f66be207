"""Hierarchical codes in plain NumPy: the arithmetic of the layout kv-int4x2, and its definition.

Codes of 8 bits, quantized exactly as in kv-int8, lie in two planes of nibbles: code = 16 * upper + lower (QuantSpec,
arXiv 2502.10424). Both planes together give kv-int8's values. The upper one alone says in which sixteenth of the range
a value lies, and gives its middle, (16 * upper + 7.5) * scale + low, for half of the bytes: codes of 4 bits with the
scale 16 * scale and the lowest value low + 7.5 * scale, both in float32. No value is off by more than 8 scales.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dlm_edge.kernels.quantized_pages.reference import Codes, Floats, Halves, Quantized, dequantize_cache, unpack

UPPER, BOTH = 1, 2  # planes that are read
MIDDLE = 7.5  # of the lower codes 0 ... 15


class Planes(NamedTuple):
    """upper and lower uint8 [..., width / 2], two channels a byte, the even one in the low nibble; scale and low as in
    Quantized."""

    upper: Codes
    lower: Codes
    scale: Halves
    low: Halves


def split_codes(codes: Codes) -> tuple[Codes, Codes]:
    """Codes uint8 [..., width] with an even width -> the upper and the lower plane, uint8 [..., width / 2]."""
    even, odd = codes[..., ::2], codes[..., 1::2]
    four, upper, lower = np.uint8(4), np.uint8(0xF0), np.uint8(0x0F)
    return even >> four | odd & upper, even & lower | odd << four


def join_codes(upper: Codes, lower: Codes) -> Codes:
    """The inverse of `split_codes`."""
    return unpack(upper, 4) << np.uint8(4) | unpack(lower, 4)


def read_planes(stored: Planes, planes: int) -> tuple[Quantized, int]:
    """What BOTH or UPPER planes hold, in the form of codes with one scale and low each, and how many bits a code has."""
    if planes == BOTH:
        return Quantized(join_codes(stored.upper, stored.lower), stored.scale, stored.low), 8
    scale, low = (part.astype(np.float32) for part in (stored.scale, stored.low))
    return Quantized(stored.upper, 16 * scale, low + np.float32(MIDDLE) * scale), 4


def dequantize_planes(k: Planes, k_tail: Floats, v: Planes, cache_len: int, planes: int) -> tuple[Floats, Floats]:
    """Keys and values float32 [..., cache_len, head_dim] as PrefixBlockAttention's overload "int4x2" sees them. Keys in
    the tail are exact whatever `planes` says. The rest as in `dequantize_cache`."""
    (keys, bits), (values, _) = read_planes(k, planes), read_planes(v, planes)
    return dequantize_cache(keys, k_tail, values, cache_len, bits)
