"""Draft and verify: one pass evaluates the canvases that the next selections are guessed to lead to (FreeDave).

The guess for selection k + 1 counts only if `select`, asked with the scores of the canvas after selection k, says the
same positions and tokens. The canvas after the first selection needs no guess. So what is committed is what `select`
alone would have committed, in the same order, and every pass brings at least one selection.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlm_edge.runtime.blocks import Span
from dlm_edge.runtime.filling import BlockFiller
from dlm_edge.runtime.samplers.contract import Commits, SelectState
from dlm_edge.runtime.scores import Scores


class DraftFiller(BlockFiller):
    def fill_span(self, span: Span) -> None:
        n_masked = len(self.asked(span))
        if not n_masked:
            return
        n_steps = n_masked if span.n_steps is None else min(span.n_steps, n_masked)
        scores = self.predict(span)[0]
        step = 0
        while True:
            chain = self.drafted(scores, self.state(step, n_masked, n_steps, span))
            ahead = self.evaluate(span, chain)
            for index, commits in enumerate(chain):
                self.apply(commits, scores)
                step += 1
                if not self.asked(span).size:
                    return
                if index == len(ahead):  # not evaluated: the cache is refreshed first
                    scores = self.predict(span)[0]
                    break
                self.predictor.cache.skip(1)
                scores = ahead[index]
                said = self.sampler.select(scores, self.state(step, n_masked, n_steps, span), self.settings.options)
                if index + 1 < len(chain) and not same(said, chain[index + 1]):
                    break

    def drafted(self, scores: Scores, state: SelectState) -> list[Commits]:
        """The first is what `select` says; the others are guesses, as many as steps run on what is stored now. Where a
        pass takes one canvas only, guesses would cost a pass each and save none."""
        assert self.sampler.drafts is not None
        chain = self.sampler.drafts(scores, state, self.settings.options)
        room = self.predictor.cache.until_refresh if self.predictor.model.model.batches_copies else 1
        return chain if room is None else chain[: max(room, 1)]

    def evaluate(self, span: Span, chain: Sequence[Commits]) -> list[Scores]:
        """Scores of the canvases after each selection of the chain that leaves masks."""
        if self.predictor.cache.until_refresh == 0:
            return []
        ids, waiting = self.canvas.ids, self.asked(span)
        fillings, positions, numbers = [], [], []
        for index, commits in enumerate(chain):
            ids = ids.copy()
            ids[commits.positions] = commits.ids
            waiting = np.setdiff1d(waiting, commits.positions)
            if not waiting.size:
                break
            fillings.append(ids)
            positions.append(waiting)
            numbers.append(self.stats.steps + index + 1)
        return self.predictor.of_fillings(fillings, positions, numbers) if fillings else []


def same(one: Commits, other: Commits) -> bool:
    return np.array_equal(one.positions, other.positions) and np.array_equal(one.ids, other.ids)
