"""Scores of rows of logits in plain NumPy: the definition.

rows       [R] of float32 [vocab_size], not empty
forbidden  ids that count as minus infinity, whatever the row holds there; those outside of the vocabulary mean nothing

With w = exp(logit - largest), where the difference is float32 like the logits and all else is float64:

    total = sum w,  top1_prob = 1 / total,  top2_prob = (second largest w) / total
    entropy = log(total) - sum (logit - largest) * w / total  [nats]

Both terms of the entropy are sums of numbers of one sign over all ids but the largest, so that it is exact near 0 too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float32]
Column = NDArray[np.float64]


class RowScores(NamedTuple):
    """[R] each. Where `largest` is not finite - NaN if the row has one, infinity, or minus infinity where no id is left -
    the id is -1 and the rest is NaN."""

    ids: NDArray[np.int64]  # the lowest of those with the largest logit
    largest: Column  # logit
    top1_prob: Column
    top2_prob: Column
    entropy: Column


def score_rows(rows: Sequence[Row], forbidden: Iterable[int]) -> RowScores:
    return stacked([score_row(row, forbidden) for row in rows])


def score_row(row: Row, forbidden: Iterable[int]) -> tuple[int, float, float, float, float]:
    """The fields of RowScores, of one row."""
    logits = row.copy()
    logits[within(forbidden, len(row))] = -np.inf
    best = int(np.argmax(logits))  # the lowest among equals; the first NaN if there is one
    largest = float(logits[best])
    if not np.isfinite(largest):
        return unsound(largest)
    with np.errstate(over="ignore"):  # minus infinity is right
        shifted = np.delete(logits - logits[best], best).astype(np.float64)
    weights = np.exp(shifted)
    rest = float(weights.sum())
    total = 1.0 + rest
    weighted = float(np.dot(shifted[weights > 0], weights[weights > 0]))  # 0 * -infinity would be NaN
    entropy = float(np.log1p(rest)) - weighted / total
    return best, largest, 1.0 / total, float(weights.max(initial=0.0)) / total, entropy


def within(forbidden: Iterable[int], vocab_size: int) -> list[int]:
    return [i for i in forbidden if 0 <= i < vocab_size]


def unsound(largest: float) -> tuple[int, float, float, float, float]:
    return -1, largest, np.nan, np.nan, np.nan


def stacked(table: Sequence[tuple[int, float, float, float, float]]) -> RowScores:
    ids = np.array([each[0] for each in table], np.int64)
    columns = np.array([each[1:] for each in table], np.float64).reshape(-1, 4).T
    return RowScores(ids, *columns)
