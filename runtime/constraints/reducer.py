"""Scores under a constraint: ids that lie on one valid filling, and how sure the model is among what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dlm_edge.errors import JobError, UsageProblem
from dlm_edge.runtime.blocks import Canvas
from dlm_edge.runtime.constraints.automaton import DEAD
from dlm_edge.runtime.constraints.block_paths import (
    FLOOR,
    Slots,
    allowed_tokens,
    best_filling,
    drawn_filling,
    living,
)
from dlm_edge.runtime.constraints.constraint import Constraint
from dlm_edge.runtime.scores import Row, Sampling, ScoreReducer, Scores, uniform

Positions = NDArray[np.int64]
Ids = NDArray[np.int64]
N_FILLINGS = 8  # kept, for canvases that are looked at before it is known which of them comes true


class ConstrainedReducer:
    """The scores of one request. Positions behind its last token, and committed ones, are scored as without it.

    At the end of what is looked at, the text must be able to end within the tokens that remain. That is a bound on
    the safe side: see Spelling.
    """

    def __init__(self, constraint: Constraint, scorer: ScoreReducer, canvas: Canvas) -> None:
        self.constraint, self.scorer, self.canvas = constraint, scorer, canvas
        self.sampling, self.gen_len = scorer.sampling, canvas.gen_len
        self._prefix: list[int] = []  # tokens before the first open position,
        self._states = [constraint.start]  # and the state before each of them, and after the last
        self._horizon = 0
        self._fillings: list[Ids] = []  # valid texts up to some horizon, the latest last

    def reduce(self, rows: Sequence[Row], positions: Positions, step: int) -> Scores:
        """As ScoreReducer.reduce, on what the canvas holds. Raises E-NUM, and E-PARAM where the automaton grows too large."""
        canvas = self.canvas
        stretch = slice(canvas.prompt_len, canvas.prompt_len + self.gen_len)
        text = np.where(canvas.is_masked[stretch], -1, canvas.ids[stretch])
        offsets = positions - canvas.prompt_len
        is_open = (offsets >= 0) & (offsets < self.gen_len) & canvas.is_masked[positions]
        scores = self.scorer.reduce(rows, positions, step)
        if not is_open.any():
            return scores
        chosen = np.flatnonzero(is_open)
        with self.constraint.lock:
            try:
                found = self._reduce_open([rows[i] for i in chosen.tolist()], offsets[chosen], text, step)
            except JobError as error:  # of an automaton: whoever gave the constraint has to change it
                raise UsageProblem("E-PARAM", error.message, error.hint) from error
        # What the model would write anyway keeps its scores, so that a sampler goes the way it would go without the
        # constraint until that forbids it; a slot that holds one token only is certain all the same.
        _, _, _, top2, _ = found
        differs = (found[0] != scores.ids[chosen]) | (top2 == 0.0)
        columns = [scores.ids, scores.confidence, scores.top1_prob, scores.top2_prob, scores.entropy]
        for column, values in zip(columns, found, strict=True):
            column[chosen[differs]] = values[differs]
        return replace(scores, logits=rows)

    def _reduce_open(
        self, rows: Sequence[Row], offsets: Positions, text: Ids, step: int
    ) -> tuple[NDArray[np.float64], ...]:
        first = int(np.argmax(text < 0))
        committed = np.flatnonzero(text >= 0)
        self._horizon = max(self._horizon, int(offsets.max()) + 1, int(committed.max(initial=-1)) + 1)
        start, stretch = self._state_before(first, text), slice(first, self._horizon)
        weights: list[Row | None] = [None] * (self._horizon - first)
        for logits, offset in zip(rows, offsets.tolist(), strict=True):
            weights[offset - first] = log_weights(logits, self.canvas.mask_id)
        slots = Slots(text[stretch], weights)
        trellis = self.constraint.paths.forward(start, slots, lambda: self._kept(start, first, text).tolist())
        is_end = self.constraint.can_end_within(trellis.states[-1], self.gen_len - self._horizon)
        assert is_end.any(), "no valid filling is left"
        alive = living(trellis, is_end)
        filled = best_filling(trellis, slots, is_end) if self.sampling.temperature == 0 else None
        masks = {o: allowed_tokens(trellis, alive, o - first, len(rows[0])) for o in offsets.tolist()}
        if filled is None:
            drawn = Slots(slots.committed, list(weights))
            for offset in offsets.tolist():
                row = weights[offset - first]
                assert row is not None
                drawn.rows[offset - first] = tempered(row, masks[offset], self.sampling)
            uniforms = np.array(
                [uniform(self.sampling, step, self.canvas.prompt_len + first + i) for i in range(len(weights))]
            )
            filled = drawn_filling(trellis, drawn, alive, uniforms)
        self._fillings = [*self._fillings, np.concatenate([text[:first], filled])][-N_FILLINGS:]
        table = []
        for offset in offsets.tolist():
            row, token = weights[offset - first], int(filled[offset - first])
            assert row is not None
            table.append((token, *certainty(row, masks[offset], token)))
        return tuple(np.array(table, np.float64).T)

    def _state_before(self, first: int, text: Ids) -> int:
        known = np.array(self._prefix[:first], np.int64)
        same = int(np.cumprod(known == text[: len(known)]).sum())
        del self._prefix[same:], self._states[same + 1 :]
        for token in text[same:first].tolist():
            state = self.constraint.state_after(self._states[-1], token)
            assert state != DEAD, "the text committed so far does not begin a valid one"
            self._prefix.append(token)
            self._states.append(state)
        return self._states[first]

    def _kept(self, start: int, first: int, text: Ids) -> Ids:
        """A valid filling up to the horizon that agrees with all committed tokens."""
        length, is_given = self._horizon - first, text >= 0
        for filling in reversed(self._fillings):
            if len(filling) < self._horizon and is_given[len(filling) :].any():
                continue
            same = filling[: len(text)] == text[: len(filling)]
            if same[is_given[: len(filling)]].all():
                break
        else:
            assert not is_given[first:].any(), "tokens were committed that no valid filling had"
            filling = text[:first]
        state = start
        for token in filling[first:].tolist():
            state = self.constraint.state_after(state, token)
        rest = self.constraint.shortest_end(state, length - (len(filling) - first))
        return np.concatenate([filling[first:], np.array(rest, np.int64)])


def log_weights(logits: Row, mask_id: int) -> Row:
    """Log-probabilities but for a constant: the largest is 0, none is below FLOOR, the mask's is FLOOR."""
    weights = logits.astype(np.float32, copy=True)
    if mask_id < len(weights):
        weights[mask_id] = -np.inf
    weights -= weights.max()  # finite: the scorer has checked the row
    return np.maximum(weights, np.float32(FLOOR), out=weights)


def tempered(weights: Row, mask: NDArray[np.bool_], sampling: Sampling) -> Row:
    """The distribution to draw from: allowed tokens at a temperature, cut to top_k and then to top_p.

    What is cut away keeps exp(FLOOR), for no cut may leave a text that cannot be finished.
    """
    tokens = np.flatnonzero(mask)
    scaled = weights[tokens].astype(np.float64)
    scaled = (scaled - scaled.max()) / sampling.temperature
    if sampling.top_k is not None or sampling.top_p < 1:
        order = np.argsort(-scaled, kind="stable")
        n_kept = min(sampling.top_k or len(order), len(order))
        if sampling.top_p < 1:
            cumulative = np.cumsum(np.exp(scaled[order[:n_kept]]))
            n_kept = min(int(np.searchsorted(cumulative, sampling.top_p * cumulative[-1])) + 1, n_kept)
        scaled[order[n_kept:]] = FLOOR
    row = np.full(len(weights), np.float32(FLOOR))
    row[tokens] = np.maximum(scaled, FLOOR)
    return row


def certainty(weights: Row, mask: NDArray[np.bool_], token: int) -> tuple[float, float, float, float]:
    """Probability of `token`, the two largest, and the entropy, over the allowed tokens."""
    shifted = weights[mask].astype(np.float64)
    top1 = shifted.max()
    shifted -= top1
    exponentials = np.exp(shifted)
    total = exponentials.sum()
    entropy = float(np.log(total) - np.dot(exponentials, shifted) / total)
    top2 = float(np.partition(exponentials, -2)[-2] / total) if len(exponentials) > 1 else 0.0
    return float(np.exp(np.float64(weights[token]) - top1) / total), 1.0 / float(total), top2, max(entropy, 0.0)
