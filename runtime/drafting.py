"""Draft and verify: one pass evaluates the canvases that the next selections are guessed to lead to (FreeDave).

The guess for selection k + 1 counts only if `select`, asked with the scores of the canvas after selection k, says the
same positions and tokens. The canvas after the first selection needs no guess. So what is committed is what `select`
alone would have committed, in the same order, and every pass brings at least one selection.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlm_edge.runtime.blocks import Span
from dlm_edge.runtime.filling import BlockFiller
from dlm_edge.runtime.samplers.contract import Commits, SelectState
from dlm_edge.runtime.scores import Row, Scores


class DraftFiller(BlockFiller):
    def fill_span(self, span: Span) -> None:
        n_masked = len(self.asked(span))
        if not n_masked:
            return
        n_steps = n_masked if span.n_steps is None else min(span.n_steps, n_masked)
        scores, state = self.predict(span), self.state(0, n_masked, n_steps, span)
        said = self.sampler.select(scores, state, self.settings.options)
        while True:
            chain = self.drafted(scores, state)
            assert same(chain[0], said), f"{self.sampler.name} drafts another first selection than its own"
            ahead = self.evaluate(span, chain)
            for index, guess in enumerate(chain):
                if not same(guess, said):
                    break
                self.apply(said, scores)
                if not self.asked(span).size:
                    return
                scores = self.next_scores(span, ahead[index] if index < len(ahead) else None)
                state = self.state(state.step + 1, n_masked, n_steps, span)
                said = self.sampler.select(scores, state, self.settings.options)

    def drafted(self, scores: Scores, state: SelectState) -> list[Commits]:
        """The first is what `select` says; the others are guesses, as many as steps run on what is stored now. Where a
        pass takes one canvas only, guesses would cost a pass each and save none."""
        assert self.sampler.drafts is not None
        chain = self.sampler.drafts(scores, state, self.settings.options)
        room = self.predictor.cache.until_refresh if self.predictor.model.model.batches_copies else 1
        return chain if room is None else chain[: max(room, 1)]

    def evaluate(self, span: Span, chain: Sequence[Commits]) -> list[list[Row]]:
        """Logits of the canvases after each selection of the chain that leaves masks; none before a refresh.

        They become scores only when their canvas has come true: a row of a canvas that never does may hold anything.
        """
        if self.predictor.cache.until_refresh == 0:
            return []
        ids, waiting = self.canvas.ids, self.asked(span)
        fillings: list[NDArray[np.int64]] = []
        positions: list[NDArray[np.int64]] = []
        for commits in chain:
            ids = ids.copy()
            ids[commits.positions] = commits.ids
            waiting = np.setdiff1d(waiting, commits.positions)
            if not waiting.size:
                break
            fillings.append(ids)
            positions.append(waiting)
        self.predictor.check_cancelled()
        return self.predictor.rows_of_fillings(fillings, positions) if fillings else []

    def next_scores(self, span: Span, rows: Sequence[Row] | None) -> Scores:
        """Of the canvas as it is now; from `rows` where it was evaluated."""
        if rows is None:
            return self.predict(span)
        self.predictor.cache.skip(1)
        return self.predictor.reduce(rows, self.asked(span), self.stats.steps)


def same(one: Commits, other: Commits) -> bool:
    return np.array_equal(one.positions, other.positions) and np.array_equal(one.ids, other.ids)
