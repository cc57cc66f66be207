"""Two planes of nibbles: together the codes of 8 bits, the upper one alone codes of 4 with a wider step."""

from __future__ import annotations

import numpy as np
import pytest

from dlm_edge.kernels.quantized_pages.planes import (
    BOTH,
    UPPER,
    Planes,
    dequantize_planes,
    join_codes,
    read_planes,
    split_codes,
)
from dlm_edge.kernels.quantized_pages.reference import (
    dequantize_cache,
    dequantize_keys,
    dequantize_values,
    quantize_keys,
    quantize_values,
)
from tests.kernels.test_quantized_pages import INPUTS, SHAPES, normal

KINDS = {  # quantize, dequantize, axis that a group extends along
    "keys": (quantize_keys, dequantize_keys, -2),
    "values": (quantize_values, dequantize_values, -1),
}


def planes_of(values: np.ndarray, kind: str, group: int) -> Planes:
    codes, scale, low = KINDS[kind][0](values, 8, group)
    return Planes(*split_codes(codes), scale, low)


def test_every_code_survives():
    codes = np.arange(256, dtype=np.uint8).reshape(2, 4, 32)
    upper, lower = split_codes(codes)
    assert upper.shape == lower.shape == (2, 4, 16)
    np.testing.assert_array_equal(join_codes(upper, lower), codes)
    assert (upper[0, 0, 8], lower[0, 0, 8]) == (0x11, 0x10)  # codes 16 and 17: the even channel in the low nibble
    assert join_codes(*split_codes(codes[:, :0])).shape == (2, 0, 32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
def test_the_upper_plane_is_within_eight_steps(make, kind, shape):
    heads, length, head_dim, group = shape
    values = make(normal(heads, length, head_dim)).astype(np.float32)
    stored, (_, dequantize, axis) = planes_of(values, kind, group), KINDS[kind]
    upper, bits = read_planes(stored, UPPER)
    steps = stored.scale.astype(np.float64).repeat(group, axis)
    rounding = 4 * np.finfo(np.float32).eps * np.abs(values).max()
    error = np.abs(dequantize(upper, bits) - values.astype(np.float64))
    assert (error <= 8 * steps * (1 + 1e-5) + rounding).all()
    middle = 16 * (join_codes(stored.upper, stored.lower) >> 4) + 7.5
    expected = middle * steps + stored.low.astype(np.float64).repeat(group, axis)
    np.testing.assert_allclose(dequantize(upper, bits), expected, rtol=1e-6, atol=rounding)


@pytest.mark.parametrize("kind", KINDS)
def test_half_the_bytes_are_as_exact_as_four_bits(kind):
    """Steps of 16 of 255 parts of the range instead of 17, but none at its ends: a little less error on random values."""
    quantize, dequantize, _ = KINDS[kind]
    values = normal(8, 256, 64)
    four = np.square(dequantize(quantize(values, 4, 64), 4) - values).mean()
    upper = np.square(dequantize(*read_planes(planes_of(values, kind, 64), UPPER)) - values).mean()
    assert 0.8 < upper / four < 1


@pytest.mark.parametrize("planes", [BOTH, UPPER])
@pytest.mark.parametrize("cache_len", [0, 1, 31, 32, 40, 63, 64])
def test_the_cache_ends_in_exact_keys(cache_len, planes):
    keys, values = normal(2, 64, 80), normal(2, 64, 80, seed=1)
    n = cache_len // 32 * 32
    tail = np.full((2, 32, 80), np.nan, np.float32)
    tail[:, : cache_len - n] = keys[:, n:cache_len]
    found = dequantize_planes(planes_of(keys, "keys", 32), tail, planes_of(values, "values", 16), cache_len, planes)
    np.testing.assert_array_equal(found[0][:, n:], keys[:, n:cache_len])
    assert found[0].shape == found[1].shape == (2, cache_len, 80)
    if planes == BOTH:
        whole = quantize_keys(keys, 8, 32), tail, quantize_values(values, 8, 16)
        for got, wanted in zip(found, dequantize_cache(*whole, cache_len, 8), strict=True):
            np.testing.assert_array_equal(got, wanted)
