"""Codes in 32-bit words, lowest bits first, without gaps: the packing of GPTQ, AWQ and compressed-tensors.

A field may run on into the next word (three bits: 32 codes in three words); the last word is filled up with zeros.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlm_edge.quantized import pack_codes, unpack_codes

Words = NDArray[np.uint32]


def word_count(n_codes: int, bits: int) -> int:
    return -(-n_codes * bits // 32)


def pack_words(codes: NDArray[np.uint8], bits: int) -> Words:
    """The last axis [..., n] as words [..., ceil(n * bits / 32)]; bits 2, 3, 4 or 8."""
    packed = pack_triples(codes) if bits == 3 else pack_codes(codes, bits)
    size = 4 * word_count(codes.shape[-1], bits)
    filled = np.zeros((*packed.shape[:-1], size), np.uint8)
    used = min(size, packed.shape[-1])  # eight triples may end in a word of their own that holds only zeros
    filled[..., :used] = packed[..., :used]
    return filled.view("<u4").astype(np.uint32, copy=False)


def unpack_words(words: Words, bits: int, n_codes: int) -> NDArray[np.uint8]:
    """The inverse of `pack_words`: codes [..., n_codes]."""
    packed = np.ascontiguousarray(words.astype("<u4", copy=False)).view(np.uint8)
    codes = unpack_triples(packed) if bits == 3 else unpack_codes(packed, bits)
    return codes[..., :n_codes]


def pack_triples(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Eight three-bit codes in three bytes."""
    n_codes = codes.shape[-1]
    filled = np.zeros((*codes.shape[:-1], -(-n_codes // 8), 8), np.uint8)
    filled.reshape(*codes.shape[:-1], -1)[..., :n_codes] = codes
    value = np.zeros(filled.shape[:-1], np.uint32)
    for i in range(8):
        value |= filled[..., i].astype(np.uint32) << np.uint32(3 * i)
    octets = np.stack([(value >> np.uint32(8 * i)).astype(np.uint8) for i in range(3)], -1)
    return octets.reshape(*codes.shape[:-1], -1)


def unpack_triples(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    n_octets = packed.shape[-1]
    filled = np.zeros((*packed.shape[:-1], -(-n_octets // 3), 3), np.uint8)
    filled.reshape(*packed.shape[:-1], -1)[..., :n_octets] = packed
    value = np.zeros(filled.shape[:-1], np.uint32)
    for i in range(3):
        value |= filled[..., i].astype(np.uint32) << np.uint32(8 * i)
    codes = np.stack([(value >> np.uint32(3 * i)).astype(np.uint8) & np.uint8(7) for i in range(8)], -1)
    return codes.reshape(*packed.shape[:-1], -1)
