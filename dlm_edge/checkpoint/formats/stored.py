"""Integer tensors of a checkpoint, and scales: read whole or in rows, never trusted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.checkpoint.floats import read_rows
from dlm_edge.checkpoint.safetensors_header import TensorEntry

INTEGERS = {"I32": "<i4", "I64": "<i8", "U8": "u1"}


def read_integers(entry: TensorEntry) -> NDArray[np.int64]:
    raw = entry.file.read(entry.begin, entry.end - entry.begin)
    return np.frombuffer(raw, INTEGERS[entry.dtype]).astype(np.int64).reshape(entry.shape)


def read_words(entry: TensorEntry, first: int = 0, last: int | None = None) -> NDArray[np.uint32]:
    """Rows [first, last) of an I32 tensor [rows, words] as bit patterns."""
    last = entry.shape[0] if last is None else last
    words = np.empty((last - first, entry.shape[1]), "<u4")
    entry.file.read_into(entry.begin + first * 4 * entry.shape[1], words.reshape(-1).view(np.uint8).data)
    return words.astype(np.uint32, copy=False)


def read_octets(entry: TensorEntry, first: int, last: int) -> NDArray[np.uint8]:
    """Bytes [first, last) of the tensor's data, whatever its type."""
    assert 0 <= first <= last <= entry.end - entry.begin, entry.name
    return np.frombuffer(entry.file.read(entry.begin + first, last - first), np.uint8)


def read_floats(entry: TensorEntry, first: int = 0, last: int | None = None) -> NDArray[np.float32]:
    """Rows [first, last) in float32. Raises E-NAN."""
    return read_rows(entry, first, entry.shape[0] if last is None else last)


def to_half(values: NDArray[np.float32]) -> NDArray[Any]:
    with np.errstate(over="ignore", under="ignore"):
        return values.astype("<f2")
