"""Logits to scores on the host: the chosen id of each row, how sure the model is, and the runner-up.

The reduction of the rows is kernels/score_rows; what is drawn, and what may not be chosen where, is decided here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlm_edge.errors import JobError
from dlm_edge.kernels.score_rows import RowScores, score_rows

Row = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scores:
    """One entry per masked position, positions ascending. Probabilities are over all ids but the mask id."""

    positions: NDArray[np.int64]  # [R] absolute
    ids: NDArray[np.int64]  # [R] top-1, or the sampled id
    confidence: NDArray[np.float64]  # [R] probability of `ids` at temperature 1, unfiltered
    top1_prob: NDArray[np.float64]  # [R]
    top2_prob: NDArray[np.float64]  # [R]
    entropy: NDArray[np.float64]  # [R] nats
    logits: Sequence[Row] = ()  # [R] of [vocab_size], for samplers that need them; valid until the model's next run

    def of(self, positions: NDArray[np.int64]) -> Scores:
        """Those of some of the positions."""
        rows = np.flatnonzero(np.isin(self.positions, positions))
        return Scores(
            self.positions[rows],
            self.ids[rows],
            self.confidence[rows],
            self.top1_prob[rows],
            self.top2_prob[rows],
            self.entropy[rows],
            [self.logits[row] for row in rows.tolist()] if len(self.logits) else (),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How ids are drawn. Temperature 0 takes the top-1 id and draws nothing."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    request: int = 0  # index of the sequence among those that share a seed


class ScoreReducer:
    """Turns rows of logits into Scores."""

    def __init__(self, mask_id: int, sampling: Sampling, stop_ids: Sequence[int] = (), first_stop: int = 0) -> None:
        """`stop_ids` are not chosen at positions before `first_stop`."""
        self.mask_id, self.sampling = mask_id, sampling
        self.stop_ids, self.first_stop = list(stop_ids), first_stop

    def reduce(self, rows: Sequence[Row], positions: NDArray[np.int64], step: int) -> Scores:
        """`rows` [R] of float32 [vocab_size], for `positions` [R]; `step` keys the random numbers.

        Raises E-NUM for a row with NaN, +inf or nothing finite, naming step and position.
        """
        found = self._score(rows, positions, step)
        ids, confidence = found.ids, found.top1_prob.copy()
        if self.sampling.temperature > 0:
            ids = np.array([self._draw(row, int(at), step) for row, at in zip(rows, positions, strict=True)], np.int64)
            logits = np.array([row[token] for row, token in zip(rows, ids.tolist(), strict=True)], np.float64)
            confidence *= np.exp(logits - found.largest)
        return Scores(positions, ids, confidence, found.top1_prob, found.top2_prob, found.entropy, rows)

    def probability(self, logits: Row, position: int, token: int, step: int) -> float:
        """Of `token` at temperature 1, over all ids but the mask id."""
        found = self._score([logits], np.array([position]), step)
        return float(np.exp(np.float64(logits[token]) - found.largest[0]) * found.top1_prob[0])

    def _score(self, rows: Sequence[Row], positions: NDArray[np.int64], step: int) -> RowScores:
        assert len(rows) == len(positions), "a row for each position"
        n_rows, is_early = len(rows), positions < self.first_stop
        found = RowScores(np.empty(n_rows, np.int64), *np.empty((4, n_rows)))
        for chosen, forbidden in ((~is_early, [self.mask_id]), (is_early, [self.mask_id, *self.stop_ids])):
            at = np.flatnonzero(chosen)
            some = score_rows([rows[i] for i in at.tolist()], forbidden) if at.size else ()
            for column, values in zip(found, some, strict=False):
                column[at] = values
        for largest, position in zip(found.largest.tolist(), positions.tolist(), strict=True):
            if not math.isfinite(largest):
                problem = "NaN" if math.isnan(largest) else "no finite score" if largest < 0 else "infinity"
                message = f"{problem} in the scores of position {position} at step {step}"
                raise JobError("E-NUM", message, "export the model again; other requests are not affected")
        return found

    def _forbidden(self, position: int, vocab_size: int) -> list[int]:
        stops = self.stop_ids if position < self.first_stop else []
        return [i for i in (self.mask_id, *stops) if i < vocab_size]

    def _draw(self, logits: Row, position: int, step: int) -> int:
        """One id from softmax(logits / temperature), cut to top_k and then to top_p; ties by rising id."""
        setting = self.sampling
        scaled = logits.astype(np.float64) / setting.temperature
        scaled[self._forbidden(position, len(scaled))] = -np.inf
        order = np.argsort(-scaled, kind="stable")[: setting.top_k]
        weights = np.exp(scaled[order] - scaled[order[0]])
        cumulative = np.cumsum(weights)
        if setting.top_p < 1:  # the smallest set whose probability reaches top_p
            cumulative = cumulative[: int(np.searchsorted(cumulative, setting.top_p * cumulative[-1])) + 1]
        target = uniform(setting, step, position) * cumulative[-1]
        return int(order[min(int(np.searchsorted(cumulative, target, side="right")), len(cumulative) - 1)])


def uniform(sampling: Sampling, step: int, slot: int, stream: int = 0) -> float:
    """A number in [0, 1) that depends on seed, request, stream, step and slot, and on nothing drawn before."""
    key = np.array([sampling.seed, sampling.request], np.uint64)
    bits = np.random.Philox(key=key, counter=[0, stream, step, slot])
    return float(np.random.Generator(bits).random())
