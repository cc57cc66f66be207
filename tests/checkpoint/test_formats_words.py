from __future__ import annotations

import numpy as np
import pytest

from dlm_edge.checkpoint.formats.awq import pack_interleaved, unpack_interleaved
from dlm_edge.checkpoint.formats.gptq import pack_zeros, unpack_zeros
from dlm_edge.checkpoint.formats.words import pack_words, unpack_words, word_count


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("n_codes", [*range(1, 70), 127, 128, 160])
def test_round_trip(bits: int, n_codes: int) -> None:
    codes = np.random.default_rng(n_codes).integers(0, 2**bits, (3, n_codes), dtype=np.uint8)
    words = pack_words(codes, bits)
    assert words.shape == (3, word_count(n_codes, bits)) and words.dtype == np.uint32
    np.testing.assert_array_equal(unpack_words(words, bits, n_codes), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_each_code_lies_at_its_bit(bits: int) -> None:
    """Against big integers: code i occupies the bits from i * bits on."""
    codes = np.random.default_rng(0).integers(0, 2**bits, 32, dtype=np.uint8)
    value = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    expected = [(value >> (32 * i)) & 0xFFFFFFFF for i in range(bits)]
    assert pack_words(codes[None], bits)[0].tolist() == expected


def test_three_bits_as_gptq_documents_them() -> None:
    """Word 0: values 0-9 and 2 bits of 10; word 1: its high bit, 11-20, 1 bit of 21; word 2: the rest of 21, 22-31."""
    codes = np.zeros((1, 32), np.uint8)
    codes[0, 10], codes[0, 21] = 0b101, 0b110
    assert pack_words(codes, 3)[0].tolist() == [0b01 << 30, 1, 0b11]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_zeros_of_all_values_beside_each_other(bits: int, version: str) -> None:
    """Every pair of neighbouring zeros: a 0 borrows from its neighbour in version 1."""
    values = np.arange(2**bits, dtype=np.uint8)
    pairs = np.stack(np.meshgrid(values, values), -1).reshape(-1, 2)
    zeros = np.tile(pairs, (1, 16))
    words = pack_zeros(zeros, bits, version)
    assert words.shape == (len(pairs), bits)
    np.testing.assert_array_equal(unpack_zeros(words, bits, 32, version), zeros)


def test_first_version_borrows_across_fields() -> None:
    zeros = np.array([[0, 8, 8, 8, 8, 8, 8, 8]], np.uint8)
    assert pack_zeros(zeros, 4, "gptq").tolist() == [[0x77777777 - 8]]
    assert pack_zeros(np.full((1, 8), 8, np.uint8), 4, "gptq").tolist() == [[0x77777777]]
    assert pack_zeros(np.full((1, 8), 8, np.uint8), 4, "gptq_v2").tolist() == [[0x88888888]]


def test_awq_puts_even_columns_first() -> None:
    codes = np.arange(8, dtype=np.uint8)[None]
    assert pack_interleaved(codes).tolist() == [[0x75316420]]
    many = np.random.default_rng(0).integers(0, 16, (5, 40), dtype=np.uint8)
    np.testing.assert_array_equal(unpack_interleaved(pack_interleaved(many)), many)
