"""Quantized keys and values in plain NumPy: the arithmetic of the layouts kv-int8 and kv-int4, and their definition.

value = code * scale + low in float32, codes 0 ... 2**bits - 1. Keys have one scale and low per channel and group of
consecutive tokens, values one per token and group of channels (KIVI, arXiv 2402.02750): outliers of keys sit in
channels, those of values do not. Keys of a group that is not full yet stay exact, in a tail.

`low` is the group's minimum rounded down to float16, `scale` the rest of its range rounded up, both before any code is
computed. Every value of the group then lies on the grid's range, and none is off by more than scale / 2.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlm_edge.errors import JobError
from dlm_edge.quantized import pack_codes, unpack_codes

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]
Scales = Halves | Floats  # float16 as stored; float32 where they are derived from what is stored
Codes = NDArray[np.uint8]
LARGEST = 65504.0  # of float16


class Quantized(NamedTuple):
    codes: Codes
    scale: Scales
    low: Scales


def quantize_keys(k: Floats, bits: int, group: int) -> Quantized:
    """k [..., length, head_dim] with length a multiple of `group` ->
    codes [..., length, head_dim * bits / 8], scale and low [..., length / group, head_dim].

    bits is 8 or 4; of 4, the even channel is in the low nibble. Raises JobError like `quantize_groups`.
    """
    *heads, length, head_dim = k.shape
    assert length % group == 0, "only whole groups of keys are quantized"
    codes, scale, low = quantize_groups(k.reshape(*heads, length // group, group, head_dim), bits, -2)
    return Quantized(pack_codes(codes.reshape(k.shape), bits), scale, low)


def dequantize_keys(quantized: Quantized, bits: int) -> Floats:
    """The inverse of `quantize_keys`: float32 [..., length, head_dim]."""
    codes, scale, low = quantized
    *heads, n_groups, head_dim = scale.shape
    length = codes.shape[-2]
    grouped = unpack(codes, bits).reshape(*heads, n_groups, length // max(n_groups, 1), head_dim)
    values = grouped * scale.astype(np.float32)[..., None, :] + low.astype(np.float32)[..., None, :]
    return values.reshape(*heads, length, head_dim)


def quantize_values(v: Floats, bits: int, group: int) -> Quantized:
    """v [..., length, head_dim] with head_dim a multiple of `group` ->
    codes [..., length, head_dim * bits / 8], scale and low [..., length, head_dim / group]."""
    assert v.shape[-1] % group == 0, "a group of channels spans no two heads"
    codes, scale, low = quantize_groups(v.reshape(*v.shape[:-1], -1, group), bits, -1)
    return Quantized(pack_codes(codes.reshape(v.shape), bits), scale, low)


def dequantize_values(quantized: Quantized, bits: int) -> Floats:
    """The inverse of `quantize_values`: float32 [..., length, head_dim]."""
    codes, scale, low = quantized
    fields = unpack(codes, bits)
    grouped = fields.reshape(*scale.shape, fields.shape[-1] // scale.shape[-1])
    values = grouped * scale.astype(np.float32)[..., None] + low.astype(np.float32)[..., None]
    return values.reshape(fields.shape)


def dequantize_cache(k: Quantized, k_tail: Floats, v: Quantized, cache_len: int, bits: int) -> tuple[Floats, Floats]:
    """Keys and values float32 [..., cache_len, head_dim] as PrefixBlockAttention's overloads "int8" and "int4" see them.

    k_tail [..., group, head_dim]: the exact keys of the positions [n, cache_len), n = cache_len // group * group. The
    codes there are not read, and neither is anything from cache_len on.
    """
    group = k_tail.shape[-2]
    n = cache_len // group * group
    grouped = Quantized(k.codes[..., :n, :], k.scale[..., : n // group, :], k.low[..., : n // group, :])
    keys = np.concatenate([dequantize_keys(grouped, bits), k_tail[..., : cache_len - n, :]], -2)
    kept = Quantized(v.codes[..., :cache_len, :], v.scale[..., :cache_len, :], v.low[..., :cache_len, :])
    values = dequantize_values(kept, bits)
    return keys, values


def unpack(packed: Codes, width: int) -> Codes:
    """`unpack_codes`, also of no rows."""
    if not packed.size:
        return np.empty((*packed.shape[:-1], packed.shape[-1] * 8 // width), np.uint8)
    return unpack_codes(packed, width)


def quantize_groups(values: Floats, bits: int, axis: int) -> Quantized:
    """Codes uint8, one a byte, like `values`; scale and low float16 without `axis`, along which a group extends.

    |code * scale + low - value| <= scale / 2, but for the rounding of float32. A group of equal values that float16
    holds has scale 0. Raises JobError: E-NAN for NaN or infinity, E-QUANT for values that float16 cannot hold.
    """
    smallest, largest = values.min(axis).astype(np.float64), values.max(axis).astype(np.float64)
    check_storable(
        is_finite=bool(np.isfinite(smallest).all() and np.isfinite(largest).all()),
        is_half=bool(max(-smallest.min(initial=0), largest.max(initial=0)) <= LARGEST),
    )
    low = rounded_down(smallest)
    scale = -rounded_down(-(largest - low) / (2**bits - 1))
    divisor = np.where(scale > 0, scale, np.float16(1)).astype(np.float32)
    steps = values - np.expand_dims(low.astype(np.float32), axis)
    steps /= np.expand_dims(divisor, axis)
    # Rounding cannot leave 0 ... 2**bits - 1: the grid covers the group, and a quotient is off by 2e-7 of itself.
    return Quantized(np.rint(steps, out=steps).astype(np.uint8), scale, low)


def check_storable(*, is_finite: bool, is_half: bool) -> None:
    """Raises JobError E-NAN or E-QUANT. `is_half`: every value is within the range of float16."""
    if not is_finite:
        raise JobError(
            "E-NAN", "NaN or infinity was to be stored in the cache", "check the model with `dlm-edge inspect`"
        )
    if not is_half:
        raise JobError("E-QUANT", "a value beyond float16's range was to be quantized", "export with --cache kv-fp32")


def rounded_down(x: NDArray[np.float64]) -> Halves:
    """The largest float16 that is not above x."""
    nearest = x.astype(np.float16)
    below: Halves = np.where(nearest > x, np.nextafter(nearest, np.float16(-np.inf)), nearest)
    return below
