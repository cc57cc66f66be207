"""Packing and unpacking of codes, and the definition of a weight: (code - zero) * scale."""

from __future__ import annotations

import numpy as np
import pytest

from dlm_edge.quantized import (
    CODEBOOKS,
    CodebookTensor,
    container_bits,
    dequantize,
    middle_code,
    pack,
    pack_codes,
    unpack,
    unpack_codes,
)
from tests.packed_folder import random_tensor

BITS = [2, 3, 4, 8]
SHAPES = [(1, 256), (3, 512), (7, 768), (5, 1280)]  # every group size below divides the columns
GROUP_SIZES = [8, 16, 32, 64, 128, 256]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_unpack_is_the_inverse_of_pack(bits, group_size, shape):
    codes = np.random.default_rng(0).integers(0, 2**bits, shape, dtype=np.uint8)
    tensor = pack(codes, np.ones((shape[0], shape[1] // group_size), np.float32), bits)
    assert tensor.packed.dtype == np.uint8
    assert (tensor.shape, tensor.group_size, tensor.bits) == (shape, group_size, bits)
    np.testing.assert_array_equal(unpack(tensor), codes)


@pytest.mark.parametrize("columns", [8, 24, 104, 1000])
def test_one_group_may_be_a_whole_row(columns):
    codes = np.random.default_rng(1).integers(0, 256, (3, columns), dtype=np.uint8)
    tensor = pack(codes, np.ones((3, 1), np.float32), 8)
    assert tensor.group_size == columns
    np.testing.assert_array_equal(unpack(tensor), codes)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("count", range(1, 18))
def test_codes_fill_up_to_whole_bytes(width, count):
    codes = np.random.default_rng(count).integers(0, 2**width, (2, 3, count), dtype=np.uint8)
    packed = pack_codes(codes, width)
    assert packed.shape == (2, 3, -(-count * width // 8))
    unpacked = unpack_codes(packed, width)
    np.testing.assert_array_equal(unpacked[..., :count], codes)
    assert not unpacked[..., count:].any()


@pytest.mark.parametrize(
    ("bits", "codes", "first_bytes"),
    [
        (2, [1, 2, 3, 0], [0b00_11_10_01]),
        (3, [4, 1, 0, 7], [0x14, 0x70]),  # three bits live in a four-bit container
        (4, [1, 15, 8, 0], [0xF1, 0x08]),
        (8, [0, 255, 128, 7], [0, 255, 128, 7]),
    ],
)
def test_lowest_bits_come_first(bits, codes, first_bytes):
    row = np.array([codes + [0] * 12], np.uint8)
    assert pack(row, np.ones((1, 1), np.float32), bits).packed[0, 0, : len(first_bytes)].tolist() == first_bytes


@pytest.mark.parametrize(("bits", "zero"), [(2, 2), (3, 4), (4, 8), (8, 128)])
def test_a_symmetric_zero_is_the_middle_code(bits, zero):
    assert middle_code(bits) == zero
    codes = np.full((1, 32), zero, np.uint8)
    codes[0, 16:] -= 1
    values = dequantize(pack(codes, np.array([[3.0, 0.5]], np.float32), bits))
    assert (values[0, :16] == 0).all()
    assert (values[0, 16:] == -0.5).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
@pytest.mark.parametrize("reordered", [False, True])
@pytest.mark.parametrize("outliers", [0, 1, 5])
def test_dequantize_is_its_definition(bits, zero, reordered, outliers):
    """Element by element, as the docstring of QuantizedTensor says it."""
    tensor = random_tensor((4, 96), bits, 32, zero, reordered=reordered, outliers=outliers)
    assert tensor.zero_kind == zero
    codes, expected = unpack(tensor).astype(np.float32), np.zeros((4, 96), np.float32)
    for row in range(4):
        for j in range(96):
            group = j // 32
            middle = np.float32(2 ** (bits - 1)) if tensor.zeros is None else np.float32(tensor.zeros[row, group])
            column = j if tensor.order is None else tensor.order[j]
            expected[row, column] = (codes[row, j] - middle) * tensor.scales[row, group]
    if tensor.outliers is not None:
        if zero != "float":  # a float zero is no code
            assert not expected[:, tensor.outliers.columns].any()
        for n, column in enumerate(tensor.outliers.columns):
            expected[:, column] += tensor.outliers.weights[:, n]
    np.testing.assert_array_equal(dequantize(tensor), expected)


def test_the_container_of_three_bits_has_four():
    assert [container_bits(bits) for bits in BITS] == [2, 4, 4, 8]


@pytest.mark.parametrize("form", ["nf4", "fp4"])
def test_codebook_values_come_high_nibble_first(form):
    """Blocks of 64 run through the rows: the second row begins in the middle of a block."""
    packed = np.arange(2 * 96 // 2, dtype=np.uint8) * np.uint8(7)
    magnitudes = np.array([1.0, 2.0, 0.5], np.float32)
    values = dequantize(CodebookTensor(packed, magnitudes, (2, 96), form)).reshape(-1)
    for at in range(192):
        code = packed[at // 2] >> 4 if at % 2 == 0 else packed[at // 2] & 15
        assert values[at] == CODEBOOKS[form][code] * magnitudes[at // 64]


def test_codebooks_have_sixteen_values_within_one():
    for values in CODEBOOKS.values():
        assert values.shape == (16,) and np.abs(values).max() == 1 and (values == 0).any()
