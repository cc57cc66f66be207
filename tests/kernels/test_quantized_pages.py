"""Quantized keys and values: the error bound, what is stored where, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from dlm_edge.errors import JobError
from dlm_edge.kernels.quantized_pages.reference import (
    dequantize_cache,
    dequantize_keys,
    dequantize_values,
    quantize_groups,
    quantize_keys,
    quantize_values,
    rounded_down,
)

KINDS = {  # quantize, dequantize, spread of a scale [.., a, b] over the values
    "keys": (quantize_keys, dequantize_keys, lambda scale, group: scale.repeat(group, -2)),
    "values": (quantize_values, dequantize_values, lambda scale, group: scale.repeat(group, -1)),
}
SHAPES = [(2, 64, 64, 32), (1, 16, 80, 16), (3, 40, 40, 20), (8, 32, 128, 32)]  # heads, length, head_dim, group
INPUTS = {
    "normal": lambda x: x,
    "offset": lambda x: 100 + 0.01 * x,  # a range far below the minimum's own rounding to float16
    "outliers": lambda x: x * np.where(np.arange(x.shape[-1]) % 7, 1, 300),
    "tiny": lambda x: 1e-9 * x,
    "constant": lambda x: np.full_like(x, 0.1),
}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
def test_error_is_at_most_half_a_step(make, kind, bits, shape):
    heads, length, head_dim, group = shape
    quantize, dequantize, spread = KINDS[kind]
    values = make(normal(heads, length, head_dim)).astype(np.float32)
    quantized = quantize(values, bits, group)
    assert quantized.codes.shape == (heads, length, head_dim * bits // 8)
    half_step = spread(quantized.scale.astype(np.float64), group) / 2
    rounding = 4 * np.finfo(np.float32).eps * np.abs(values).max()  # of the difference, quotient, product and sum
    error = np.abs(dequantize(quantized, bits) - values.astype(np.float64))
    assert (error <= half_step * (1 + 1e-5) + rounding).all()


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_the_grid_reaches_from_the_minimum_to_the_maximum(bits):
    values = normal(50, 32) * 10.0 ** np.random.default_rng(1).integers(-6, 4, (50, 1))
    _, scale, low = quantize_groups(values.astype(np.float32), bits, -1)
    low, scale = low.astype(np.float64), scale.astype(np.float64)
    values = values.astype(np.float32).astype(np.float64)
    assert (low <= values.min(-1)).all()
    assert (low + (2**bits - 1) * scale >= values.max(-1)).all()


def test_rounding_down_is_the_nearest_float16_below():
    x = normal(1000).astype(np.float64) * 1000
    below = rounded_down(x)
    assert (below <= x).all() and (np.nextafter(below, np.float16(np.inf)) > x).all()


def test_the_even_channel_is_in_the_low_nibble():
    values = np.tile(np.arange(16, dtype=np.float32), (1, 4, 1))
    codes = quantize_values(values, 4, 16).codes
    assert codes[0, 0].tolist() == [low + 16 * (low + 1) for low in range(0, 16, 2)]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("cache_len", [0, 1, 31, 32, 33, 96])
def test_cache_takes_the_last_keys_from_the_tail(cache_len, bits):
    k, v = normal(2, 96, 40), normal(2, 96, 40, seed=1)
    stored_k, stored_v = quantize_keys(k, bits, 32), quantize_values(v, bits, 20)
    n = cache_len // 32 * 32
    tail = np.full((2, 32, 40), np.nan, np.float32)
    tail[:, : cache_len - n] = k[:, n:cache_len]
    stored_k.scale[:, n // 32 :] = np.nan  # what is not a full group is not read
    keys, values = dequantize_cache(stored_k, tail, stored_v, cache_len, bits)
    assert keys.dtype == values.dtype == np.float32 and keys.shape == (2, cache_len, 40)
    np.testing.assert_array_equal(keys[:, n:], k[:, n:cache_len])
    np.testing.assert_array_equal(keys[:, :n], dequantize_keys(quantize_keys(k, bits, 32), bits)[:, :n])
    np.testing.assert_array_equal(values, dequantize_values(stored_v, bits)[:, :cache_len])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("quantize", [quantize_keys, quantize_values])
def test_what_is_not_finite_is_refused(quantize, bad):
    values = normal(1, 32, 32)
    values[0, 5, 7] = bad
    with pytest.raises(JobError) as caught:
        quantize(values, 8, 32)
    assert caught.value.code == "E-NAN"


@pytest.mark.parametrize("sign", [1, -1])
def test_what_float16_cannot_hold_is_refused(sign):
    values = normal(1, 32, 32)
    values[0, 5, 7] = sign * 70_000.0
    with pytest.raises(JobError) as caught:
        quantize_values(values, 4, 32)
    assert caught.value.code == "E-QUANT"
