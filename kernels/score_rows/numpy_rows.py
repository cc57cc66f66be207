"""Scores of rows where there is no library: the definition in float32, as fast as NumPy goes.

Row by row with two reused buffers is two to three times faster than on the whole matrix at vocabularies of 125,000 and
more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlm_edge.kernels.score_rows.reference import Row, RowScores, stacked, unsound, within


def score_rows(rows: Sequence[Row], forbidden: Sequence[int]) -> RowScores:
    """As reference.py: probabilities within 1e-7 of it, the entropy within 1.2e-6; top2_prob has float32's range."""
    buffers = np.empty((2, len(rows[0]) if len(rows) else 0), np.float32)
    return stacked([_score_row(row, forbidden, *buffers) for row in rows])


def _score_row(row: Row, forbidden: Sequence[int], logits: Row, weights: Row) -> tuple[int, float, float, float, float]:
    np.copyto(logits, row)
    logits[within(forbidden, len(logits))] = -np.inf
    best = int(np.argmax(logits))
    largest = float(logits[best])
    if not np.isfinite(largest):
        return unsound(largest)
    with np.errstate(over="ignore"):
        logits -= logits[best]
    logits[best] = -np.inf
    np.maximum(logits, -200.0, out=logits)  # exp(-200) is 0 in float32, and 0 * -infinity would be NaN
    np.exp(logits, out=weights)
    rest = float(weights.sum(dtype=np.float64))
    total = 1.0 + rest
    second = float(weights.max())
    np.multiply(logits, weights, out=weights)
    entropy = float(np.log1p(rest)) - float(weights.sum()) / total  # NumPy sums pairwise, which a dot product does not
    return best, largest, 1.0 / total, second / total, entropy
