"""How a weight [out, in] lies in memory for QLinear: in tiles of 16 outputs, so that one load feeds one dot product.

codes   uint8 [tiles, filled / k_per_vector, 64]: one vector is 16 outputs of k_per_vector = 8 / bits * 4 consecutive k.
        Its byte 4 * output + j has, from bit i * bits on, the code of k = 4 * i + j: shifted and masked, the vector is
        the operand of vpdpbusd for four k at a time, and sixteen of these are a tile of AMX.
others  [tiles, n, 16]: scales, zeros and outlier weights, that is `n` values of each output.

`filled` is the number of k, filled up to a multiple of 64; fields past the weight are 0. Weights whose numbers of
outputs are multiples of 16 stack along the first axis: q, k and v, or gate and up, are one product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS = 16  # outputs of a tile
VECTOR_BYTES = 64
FILLED_K = 64
BITS = (8, 4, 2)

Codes = NDArray[np.uint8]


def filled(in_features: int) -> int:
    return -(-in_features // FILLED_K) * FILLED_K


def n_tiles(out_features: int) -> int:
    return -(-out_features // COLUMNS)


def n_vectors(in_features: int, bits: int) -> int:
    """Of one tile."""
    return filled(in_features) * bits // 32


def pack_tiles(codes: Codes, bits: int) -> Codes:
    """Codes [out, in], one a byte, to [tiles, vectors, 64]."""
    rows, columns = codes.shape
    per_byte, tiles = 8 // bits, n_tiles(rows)
    whole = np.zeros((tiles * COLUMNS, filled(columns)), np.uint8)
    whole[:rows, :columns] = codes
    fields = whole.reshape(tiles, COLUMNS, -1, per_byte, 4)  # output, vector, i, j
    packed = np.zeros((tiles, COLUMNS, fields.shape[2], 4), np.uint8)
    for i in range(per_byte):
        packed |= fields[:, :, :, i] << np.uint8(i * bits)
    return np.ascontiguousarray(packed.transpose(0, 2, 1, 3)).reshape(tiles, -1, VECTOR_BYTES)


def unpack_tiles(packed: Codes, bits: int, out_features: int, in_features: int) -> Codes:
    """The inverse of `pack_tiles`."""
    tiles, vectors, _ = packed.shape
    by_output = packed.reshape(tiles, vectors, COLUMNS, 4).transpose(0, 2, 1, 3)
    shifts = (np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits))[:, None]
    fields = by_output[..., None, :] >> shifts & np.uint8(2**bits - 1)  # output, vector, i, j
    return fields.reshape(tiles * COLUMNS, -1)[:out_features, :in_features]


def to_tiles(values: NDArray[Any]) -> NDArray[Any]:
    """[out, n] to [tiles, n, 16]."""
    rows, count = values.shape
    whole = np.zeros((n_tiles(rows) * COLUMNS, count), values.dtype)
    whole[:rows] = values
    return np.ascontiguousarray(whole.reshape(n_tiles(rows), COLUMNS, count).transpose(0, 2, 1))


def from_tiles(tiles: NDArray[Any], out_features: int) -> NDArray[Any]:
    """The inverse of `to_tiles`."""
    return tiles.transpose(0, 2, 1).reshape(len(tiles) * COLUMNS, tiles.shape[1])[:out_features]
