"""Scores of positions on a canvas: the model behind its cache, and what several fillings of one window would give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dlm_edge.runtime.cache import Cache, CountedModel
from dlm_edge.runtime.samplers.contract import LeftOut
from dlm_edge.runtime.scores import Row, ScoreReducer, Scores

Positions = NDArray[np.int64]
AT_ONCE = 8192  # positions of all fillings together that one pass over many of them takes


class Reducer(Protocol):
    """Logits to scores: what the model finds likeliest, or what a constraint leaves of it."""

    def reduce(self, rows: Sequence[Row], positions: Positions, step: int) -> Scores: ...


class Predictor:
    """`guidance` w > 0: logits u + (w + 1) (c - u), where u is what the model says with the prompt hidden (LLaDA,
    arXiv 2502.09992, appendix; Ho and Salimans 2022, arXiv 2207.12598). It needs the whole sequence in the window.
    Tokens that were given behind the prompt stay visible in both."""

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
        if self.guidance:
            rows: Sequence[Row] = self.rows_of_fillings([self.canvas.ids], [positions])[0]
        else:
            rows = self.cache.rows(positions)
        return self.reduce(rows, positions, number)

    def reduce(self, rows: Sequence[Row], positions: Positions, number: int) -> Scores:
        """Of logits on what the canvas holds now."""
        return self.reducer.reduce(rows, positions, number)

    def left_out(self, placed: Positions, number: int) -> LeftOut:
        """How likely the tokens at `placed` are where each of them alone is hidden. Rows of logits given before are lost."""
        window, probabilities = self.cache.step_window, list[float]()
        at_once = max(AT_ONCE // (window.end - window.start), 1)
        for at in range(0, len(placed), at_once):
            self.check_cancelled()
            some = placed[at : at + at_once]
            rows = self.rows_of_fillings(self.without_each(some), [np.array([each]) for each in some])
            probabilities += self.probabilities(rows, some, number)
        return LeftOut(placed, np.array(probabilities))

    def without_each(self, placed: Positions) -> list[NDArray[np.int64]]:
        fillings = np.tile(self.canvas.ids, (len(placed), 1))
        fillings[np.arange(len(placed)), placed] = self.canvas.mask_id
        return list(fillings)

    def probabilities(self, rows: Sequence[Sequence[Row]], placed: Positions, number: int) -> list[float]:
        """Of the tokens at `placed`, each by the one row of its own filling."""
        tokens = self.canvas.ids[placed]
        return [
            self.scorer.probability(row[0], int(at), int(token), number)
            for row, at, token in zip(rows, placed, tokens, strict=True)
        ]

    def rows_of_fillings(
        self, fillings: Sequence[NDArray[np.int64]], positions: Sequence[Positions]
    ) -> list[list[Row]]:
        """Logits of `positions[i]` on `fillings[i]`, ids [canvas] that differ from the canvas within the block only; valid
        until the next run. The canvas is unchanged. One pass where the model takes several fillings at once."""
        if not self.guidance:
            return self._plain_rows(fillings, positions)
        hidden = [ids.copy() for ids in fillings]
        for ids in hidden:
            ids[: self.canvas.prompt_len] = self.canvas.mask_id
        rows = self._plain_rows([*fillings, *hidden], [*positions, *positions])
        scale = np.float32(self.guidance + 1)
        pairs = zip(rows[: len(fillings)], rows[len(fillings) :], strict=True)
        return [[u + scale * (c - u) for c, u in zip(given, free, strict=True)] for given, free in pairs]

    def _plain_rows(self, fillings: Sequence[NDArray[np.int64]], positions: Sequence[Positions]) -> list[list[Row]]:
        self.cache.settle()
        window = self.cache.step_window
        known = [self.cache.known_row(at) for at in positions]  # of the first one, where no window predicts it
        asked = [at[1:] if row is not None else at for at, row in zip(positions, known, strict=True)]
        run = [i for i, at in enumerate(asked) if at.size]
        found: list[list[Row]] = [[] if row is None else [row] for row in known]
        if run:
            texts = [fillings[i][window.start : window.end] for i in run]
            for i, rows in zip(run, self.model.run_fillings(window, texts, [asked[i] for i in run]), strict=True):
                found[i].extend(rows)
        return found
