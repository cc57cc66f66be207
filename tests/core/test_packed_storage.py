"""Packed weights as named parts of a file, and back again, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dlm_edge.packed_storage import (
    BY_ROW,
    SUFFIXES,
    from_parts,
    from_planes,
    narrowest,
    pack_zeros,
    part_shapes,
    to_parts,
    to_planes,
    unpack_zeros,
    zero_bytes,
)
from dlm_edge.quantized import PackedWeight, QuantizedTensor, dequantize, pack_codes
from tests.packed_folder import random_codebook, random_tensor, record_of

BITS = [2, 3, 4, 8]
SAFETENSORS = {"uint8": "U8", "float16": "F16", "float32": "F32", "int64": "I64"}


def check_round_trip(tensor: PackedWeight) -> None:
    """The whole weight and every range of its rows."""
    record, parts = record_of("w", tensor), to_parts(tensor)
    expected = part_shapes(record, tensor.shape)
    assert set(parts) == set(expected) <= set(SUFFIXES)
    for suffix, (dtypes, shapes) in expected.items():
        assert parts[suffix].shape == shapes[0], suffix
        assert SAFETENSORS[parts[suffix].dtype.name] in dtypes, suffix
    rows, columns = tensor.shape
    for first, last in [(0, rows), (0, 1), (rows - 1, rows), (rows // 2, rows)]:
        some = {suffix: part[first:last] if suffix in BY_ROW else part for suffix, part in parts.items()}
        back = from_parts(record, columns, some.__getitem__)
        assert back.shape == (last - first, columns)
        np.testing.assert_array_equal(dequantize(back), dequantize(tensor)[first:last])
    assert_equal(from_parts(record, columns, parts.__getitem__), tensor)


def assert_equal(one: PackedWeight, other: PackedWeight) -> None:
    assert type(one) is type(other)
    for name in one.__slots__:
        a, b = getattr(one, name), getattr(other, name)
        if name == "outliers" and a is not None:
            np.testing.assert_array_equal(a.columns, b.columns)
            np.testing.assert_array_equal(a.weights, b.weights)
        else:
            np.testing.assert_array_equal(a, b)
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [8, 16, 24, 32, 64, 128])
@pytest.mark.parametrize("groups", [1, 2, 3, 5, 7, 9, 11])  # odd numbers leave bytes of packed zeros half filled
@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
def test_every_grid_comes_back(bits, group_size, groups, zero):
    for rows in (1, 3, 8):
        check_round_trip(random_tensor((rows, groups * group_size), bits, group_size, zero))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
@pytest.mark.parametrize("reordered", [False, True])
@pytest.mark.parametrize("outliers", [0, 1, 7])
def test_order_and_outliers_come_back(bits, zero, reordered, outliers):
    check_round_trip(random_tensor((5, 96), bits, 32, zero, reordered=reordered, outliers=outliers))


@pytest.mark.parametrize("form", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(1, 64), (3, 128), (7, 320)])
def test_codebooks_come_back(form, shape):
    check_round_trip(random_codebook(shape, form))


def test_three_bits_take_three_bits():
    """All 8 ** 8 groups of eight codes would be too many: every code at every place is enough, the planes are bitwise."""
    codes = np.array([[(code + place) % 8 for place in range(8)] for code in range(8)], np.uint8)
    planes = to_planes(pack_codes(codes, 4))
    assert planes.shape == (8, 3)
    np.testing.assert_array_equal(from_planes(planes), pack_codes(codes, 4))
    low_then_high = [0b11_10_01_00, 0b11_10_01_00, 0b1111_0000]  # codes 0 ... 7 in order
    assert planes[0].tolist() == low_then_high


@pytest.mark.parametrize("groups", range(1, 41))
def test_zeros_of_three_bits_take_no_more_than_planes_or_container(groups):
    tensor = random_tensor((4, groups * 8), 3, 8, "integer")
    stored = to_parts(tensor)["_zero"]
    low, high, container = -(-groups // 4), -(-groups // 8), -(-groups // 2)
    assert stored.shape == (4, zero_bytes(groups, 3)) == (4, min(low + high, container))
    np.testing.assert_array_equal(unpack_zeros(stored, groups, 3), tensor.zeros)
    if groups % 8 == 0:
        assert 8 * stored.shape[1] == 3 * groups


@pytest.mark.parametrize("groups", [1, 6, 7, 8, 24, 33])
def test_zeros_of_three_bits_in_four_are_read_as_before(groups):
    tensor = random_tensor((3, groups * 16), 3, 16, "integer")
    parts = to_parts(tensor) | {"_zero": pack_codes(tensor.zeros, 4)}
    _, shapes = part_shapes(record_of("w", tensor), tensor.shape)["_zero"]
    assert parts["_zero"].shape in shapes
    assert_equal(from_parts(record_of("w", tensor), groups * 16, parts.__getitem__), tensor)


def test_zeros_lie_in_planes_as_codes_do():
    zeros = np.arange(8, dtype=np.uint8)[None]
    np.testing.assert_array_equal(pack_zeros(zeros, 3), to_planes(pack_codes(zeros, 4)))


def test_scales_that_float16_cannot_hold_stay_in_float32():
    tensor = random_tensor((2, 32), 4, 16)
    assert to_parts(tensor)["_scale"].dtype == np.float16
    for factor in (np.float32(1e-6), np.float32(1e7)):
        fine: QuantizedTensor = replace(tensor, scales=tensor.scales * factor)
        assert to_parts(fine)["_scale"].dtype == np.float32
        check_round_trip(fine)


@pytest.mark.parametrize("value", [65504.0, 2.0**-24, 0.0, -1.5])
def test_what_float16_holds_is_stored_in_it(value):
    assert narrowest(np.array([value], np.float32)).dtype == np.float16


@pytest.mark.parametrize("value", [65536.0, 2.0**-25, 1.0 + 2.0**-11])
def test_what_float16_does_not_hold_is_not(value):
    assert narrowest(np.array([value], np.float32)).dtype == np.float32
