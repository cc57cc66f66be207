"""Scores of rows as fast as this installation can: by the compiled library, or by NumPy where it is missing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlm_edge.kernels import library
from dlm_edge.kernels.score_rows import numpy_rows
from dlm_edge.kernels.score_rows.reference import Row, RowScores


def score_rows(rows: Sequence[Row], forbidden: Sequence[int]) -> RowScores:
    """As reference.py; all rows are of one length, each in memory of its own if need be. Other threads run meanwhile.

    Native: the same ids as the definition, the rest to 1e-6 of its value, and to 1e-30 where it is 0.
    Raises EnvironmentProblem when there is a library that cannot be loaded.
    """
    found = _native_rows(rows, forbidden)
    return numpy_rows.score_rows(rows, forbidden) if found is None else found


def _native_rows(rows: Sequence[Row], forbidden: Sequence[int]) -> RowScores | None:
    readable = [np.ascontiguousarray(row, np.float32) for row in rows]  # copies only what is not readable as it is
    vocab_size = len(readable[0]) if readable else 0
    assert all(row.shape == (vocab_size,) for row in readable), "rows of different lengths"
    addresses = np.array([row.ctypes.data for row in readable], np.uintp)
    ids, columns = np.empty(len(readable), np.int64), np.empty((4, len(readable)))
    if not library.score_rows(addresses, vocab_size, np.array(forbidden, np.int64), ids, columns):
        return None
    return RowScores(ids, *columns)
