"""The Triton kernels of DequantizeRows and RematerialiseRows, interpreted, against the NumPy definitions."""

from __future__ import annotations

import numpy as np
import pytest

from dlm_edge.kernels.dequantize_rows import reference
from dlm_edge.kernels.dequantize_rows.reference import BITS
from dlm_edge.kernels.rematerialise_rows.reference import rematerialise_rows
from tests.kernels.interpreted import launch_rows, normal, tensor, torch
from tests.kernels.stored_rows import Stored

by_bits = pytest.mark.parametrize("bits", BITS)
STORED = [
    Stored("token", 64, 48, 16, 55),
    Stored("token", 7, 72, 24, 7),  # XQuant's X, of a width that fills no tile
    Stored("channel", 64, 160, 16, 55),  # latents of two kv heads of 80, the tail partly filled
    Stored("channel", 64, 128, 32, 64),  # no row in the tail
    Stored("channel", 32, 32, 32, 9),  # every row in the tail
]
# Relative to the largest product, over these cases and 5 seeds: 2.3e-7 in float32, sums in another order; 1.8e-4 in
# float16, where sums that lie between two values are rounded either way. The bounds leave a factor of two.
TOLERANCE = {np.float32: 5e-7, np.float16: 4e-4}


@by_bits
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_dequantized_rows(stored, bits):
    inputs, rows = stored.inputs(bits), stored.rows(12)
    wanted = reference.dequantize_rows(*inputs, rows, stored.cache_len, bits=bits, axis=stored.axis)
    tensors = [tensor(each) for each in (*inputs, rows)]
    found = launch_rows.dequantize_rows(*tensors, stored.cache_len, bits=bits, axis=stored.axis)
    np.testing.assert_array_equal(found.numpy(), wanted)


def remake(stored: Stored, bits: int, rows: np.ndarray, weight: np.ndarray, seed: int = 0) -> np.ndarray:
    tensors = [tensor(each) for each in (*stored.inputs(bits, seed), rows)]
    found = launch_rows.rematerialise_rows(
        *tensors, stored.cache_len, tensor(weight), bits=bits, axis=stored.axis
    )  # fmt: skip
    return found.numpy()


def assert_rematerialised(stored: Stored, bits: int, n: int, n_out: int, dtype: type, seed: int = 0) -> None:
    rows, weight = stored.rows(n), normal(np.random.default_rng(seed + 7), dtype, stored.width, n_out)
    found = remake(stored, bits, rows, weight, seed)
    wanted = rematerialise_rows(
        *stored.inputs(bits, seed), rows, stored.cache_len, weight, bits=bits, axis=stored.axis
    )  # fmt: skip
    assert found.dtype == wanted.dtype == dtype
    bound = TOLERANCE[dtype] * np.abs(wanted.astype(np.float32)).max(initial=0)
    np.testing.assert_allclose(found.astype(np.float32), wanted.astype(np.float32), rtol=0, atol=bound)


@by_bits
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_the_product_with_rows(stored, bits, dtype):
    assert_rematerialised(stored, bits, 19, stored.width, dtype)


@pytest.mark.parametrize("n_out", [16, 80, 240])
@pytest.mark.parametrize("n", [1, 16, 17, 65])
def test_any_number_of_rows_and_outputs(n, n_out):
    assert_rematerialised(STORED[2], 4, n, n_out, np.float16)


def test_no_rows_give_nothing():
    assert remake(STORED[0], 4, np.empty(0, np.int64), np.ones((48, 32), np.float16)).shape == (0, 32)


@pytest.mark.parametrize("axis", ["token", "channel"])
def test_an_empty_cache_gives_nothing(axis):
    stored = Stored(axis, 32, 32, 16, 0)
    assert remake(stored, 8, np.empty(0, np.int64), np.ones((32, 16), np.float16)).shape == (0, 16)


@pytest.mark.parametrize("stored", [STORED[0], STORED[2]], ids=str)
def test_rows_outside_the_cache_are_zeros(stored):
    rows = np.array([3, -1, stored.cache_len, 2**40, stored.cache_len - 1])
    weight = normal(np.random.default_rng(0), np.float16, stored.width, 16)
    found = remake(stored, 4, rows, weight)
    assert np.isfinite(found).all() and not found[1:4].any() and found[[0, 4]].any(1).all()


def test_values_are_rounded_like_between_two_nodes():
    """What the fused kernel leaves out is the memory between the two, not the rounding."""
    stored, rows = STORED[2], STORED[2].rows(9)
    identity = np.eye(stored.width, dtype=np.float16)
    tensors = [tensor(each) for each in (*stored.inputs(4), rows)]
    halves = launch_rows.dequantize_rows(*tensors, stored.cache_len, bits=4, axis="channel", dtype=torch.float16)
    np.testing.assert_array_equal(remake(stored, 4, rows, identity), halves.numpy())
