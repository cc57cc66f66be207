"""Scores of positions on a canvas: the model behind its cache, and what several fillings of one window would give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dlm_edge.runtime.cache import Cache, CountedModel
from dlm_edge.runtime.samplers.contract import NOTHING_LEFT_OUT, LeftOut
from dlm_edge.runtime.scores import Row, ScoreReducer, Scores

Positions = NDArray[np.int64]


class Reducer(Protocol):
    """Logits to scores: what the model finds likeliest, or what a constraint leaves of it."""

    def reduce(self, rows: Sequence[Row], positions: Positions, step: int) -> Scores: ...


class Predictor:
    """`guidance` w > 0: logits u + (w + 1) (c - u), where u is what the model says with the prompt hidden (LLaDA,
    arXiv 2502.09992, appendix; Ho and Salimans 2022, arXiv 2207.12598). It needs the whole sequence in the window."""

    def __init__(
        self,
        model: CountedModel,
        cache: Cache,
        scorer: ScoreReducer,
        reducer: Reducer,
        check_cancelled: Callable[[], None],
        guidance: float = 0.0,
    ) -> None:
        self.model, self.cache, self.canvas = model, cache, model.canvas
        self.scorer, self.reducer, self.check_cancelled, self.guidance = scorer, reducer, check_cancelled, guidance

    def scores(self, positions: Positions, number: int) -> Scores:
        """Of positions of the present block; `number` of selections so far keys the random numbers."""
        self.check_cancelled()
        rows = self.cache.rows(positions) if not self.guidance else self._guided_rows(positions)
        return self.reducer.reduce(rows, positions, number)

    def of_fillings(
        self, fillings: Sequence[NDArray[np.int64]], positions: Sequence[Positions], numbers: Sequence[int]
    ) -> list[Scores]:
        """Scores of `positions[i]` on `fillings[i]`, ids [canvas] that differ from the canvas within the block only.

        The canvas is unchanged afterwards. One pass where the model takes several fillings at once.
        """
        self.check_cancelled()
        rows = self.fillings_rows(fillings, positions)
        return [self.reducer.reduce(rows[i], positions[i], numbers[i]) for i in range(len(fillings))]

    def scores_and_left_out(self, positions: Positions, placed: Positions, number: int) -> tuple[Scores, LeftOut]:
        """Scores of `positions`, and how likely the tokens at `placed` are where each of them alone is hidden."""
        if not placed.size or self.cache.until_refresh == 0:
            scores = self.scores(positions, number)
            return scores, self.left_out([], placed, number) if placed.size else NOTHING_LEFT_OUT
        self.check_cancelled()
        self.cache.skip(1)
        fillings = [self.canvas.ids, *self.without_each(placed)]
        first, *others = self.fillings_rows(fillings, [positions, *(np.array([at]) for at in placed)])
        return self.reducer.reduce(first, positions, number), self.left_out(others, placed, number)

    def left_out(self, rows: Sequence[Sequence[Row]], placed: Positions, number: int) -> LeftOut:
        if not rows:
            rows = self.fillings_rows(self.without_each(placed), [np.array([at]) for at in placed])
        tokens = self.canvas.ids[placed]
        probabilities = [
            self.scorer.probability(row[0], int(at), int(token), number)
            for row, at, token in zip(rows, placed, tokens, strict=True)
        ]
        return LeftOut(placed, np.array(probabilities))

    def without_each(self, placed: Positions) -> list[NDArray[np.int64]]:
        fillings = np.tile(self.canvas.ids, (len(placed), 1))
        fillings[np.arange(len(placed)), placed] = self.canvas.mask_id
        return list(fillings)

    def fillings_rows(self, fillings: Sequence[NDArray[np.int64]], positions: Sequence[Positions]) -> list[list[Row]]:
        """Logits of `positions[i]` on `fillings[i]`, valid until the next run."""
        window = self.cache.step_window
        known = [
            self.cache.known_row(asked) for asked in positions
        ]  # of the first position, where no window predicts it
        asked = [at[1:] if row is not None else at for at, row in zip(positions, known, strict=True)]
        logits = self.model.run_fillings(window, [ids[window.start : window.end] for ids in fillings], asked)
        return [[row, *rest] if row is not None else rest for row, rest in zip(known, logits, strict=True)]

    def _guided_rows(self, positions: Positions) -> Sequence[Row]:
        hidden = self.canvas.ids.copy()
        hidden[: self.canvas.prompt_len] = self.canvas.mask_id
        given, free = self.fillings_rows([self.canvas.ids, hidden], [positions, positions])
        return [u + np.float32(self.guidance + 1) * (c - u) for c, u in zip(given, free, strict=True)]
