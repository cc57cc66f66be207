"""Stored floating-point tensors to float32, a bounded number of rows at a time, and counted for NaN and infinity."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dlm_edge.checkpoint.safetensors_header import ITEM_BYTES, TensorEntry
from dlm_edge.errors import InputFileError

FLOATS = ("F32", "F16", "BF16")
CHUNK_BYTES = 16 << 20


def read_rows(entry: TensorEntry, first: int, last: int) -> NDArray[np.float32]:
    """Rows [first, last) of the first dimension in float32. Raises E-NAN with the number of bad values."""
    rows = np.empty((last - first, *entry.shape[1:]), np.float32)
    n_bad = 0
    for start, stop, raw in _chunks(entry, first, last):
        values = to_float32(raw, entry.dtype)
        n_bad += values.size - int(np.isfinite(values).sum())
        rows[start - first : stop - first] = values.reshape(stop - start, *entry.shape[1:])
    if n_bad:
        raise InputFileError(
            "E-NAN",
            f"{entry.file.path}: {entry.name} holds {n_bad} values that are NaN or infinite",
            "get intact weights",
        )
    return rows


def read_bytes(entry: TensorEntry, first: int, last: int) -> NDArray[np.uint8]:
    """Rows [first, last) of a U8 tensor."""
    width = math.prod(entry.shape[1:])
    rows = np.empty((last - first, *entry.shape[1:]), np.uint8)
    entry.file.read_into(entry.begin + first * width, rows.reshape(-1).data)
    return rows


def same_bytes(one: TensorEntry, other: TensorEntry) -> bool:
    """Whether two tensors hold the same numbers, bit by bit, without having either in memory at once."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    for at in range(0, one.end - one.begin, CHUNK_BYTES):
        length = min(CHUNK_BYTES, one.end - one.begin - at)
        if one.file.read(one.begin + at, length) != other.file.read(other.begin + at, length):
            return False
    return True


def to_float32(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """`raw` holds little-endian values one after the other."""
    if dtype == "BF16":  # the upper half of a float32
        return (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return raw.view("<f2" if dtype == "F16" else "<f4").astype(np.float32)


def _chunks(entry: TensorEntry, first: int, last: int) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    row_bytes = math.prod(entry.shape[1:]) * ITEM_BYTES[entry.dtype]
    per_chunk = max(1, CHUNK_BYTES // row_bytes)
    for start in range(first, last, per_chunk):
        stop = min(start + per_chunk, last)
        raw = np.empty((stop - start) * row_bytes, np.uint8)
        entry.file.read_into(entry.begin + start * row_bytes, raw.data)
        yield start, stop, raw
