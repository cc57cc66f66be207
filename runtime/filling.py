"""Filling a block: rounds of predict, select and commit, sub-block by sub-block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.runtime.blocks import Block, Span
from dlm_edge.runtime.decode_settings import DecodeSettings, Stats
from dlm_edge.runtime.guide import Guide
from dlm_edge.runtime.predicting import Predictor
from dlm_edge.runtime.samplers.contract import Commits, LeftOut, Sampler, SelectState
from dlm_edge.runtime.scores import Scores

Positions = NDArray[np.int64]


class BlockFiller:
    """`after_step` is called after every selection. One block at a time, in the order of the grid."""

    def __init__(
        self,
        predictor: Predictor,
        settings: DecodeSettings,
        sampler: Sampler[Any],
        stats: Stats,
        after_step: Callable[[], None],
        guide: Guide | None = None,
    ) -> None:
        self.predictor, self.canvas, self.plan = predictor, predictor.canvas, predictor.model.plan
        self.settings, self.sampler, self.stats, self.after_step = settings, sampler, stats, after_step
        self.guide = guide
        self.block = Block(0, 0, ())
        self.memory: Any = None
        self.first: Scores | None = None  # of the block's first step, where its border followed from them

    def fill(self, block: Block, *, first_token_is_known: bool = False) -> None:
        """`first_token_is_known`: its scores come from the last clean position, before the block's first step."""
        self.block, self.memory = block, None
        if self.sampler.needs.can_edit:
            self.canvas.settled_end = block.start
        if first_token_is_known and block.start > 0 and self.canvas.is_masked[block.start]:
            scores = self.predictor.scores(np.array([block.start]), self.stats.steps)
            self.apply(Commits(scores.positions, scores.ids), scores)
        for span in self.spans():
            self.fill_span(span)
        if self.sampler.needs.can_edit:
            self.canvas.settled_end = block.end
            self.after_step()  # whoever watches learns that the block's text is final

    def choose_border(self, candidate: Block) -> Block:
        """The block that the sampler wants to begin where `candidate` does; it ends there, or earlier."""
        assert self.sampler.border is not None
        end, self.first = min(candidate.start + self.settings.block_length, candidate.end), None
        self.block = Block(candidate.start, end, ())
        positions = self.canvas.masked(candidate.start, candidate.end)
        if positions.size:
            self.first = self.predictor.scores(positions, self.stats.steps)
            state = self.state(0, len(positions), len(positions), Span(candidate.start, candidate.end))
            end = self.sampler.border(self.first, state, self.settings.options)
        return Block(candidate.start, end, (Span(candidate.start, end),))

    def spans(self) -> Sequence[Span]:
        if self.sampler.spans is None:
            return self.block.spans
        whole = Span(self.block.start, self.block.end)
        chosen = self.sampler.spans(self.state(0, 1, 1, whole), self.settings.options)
        return self.block.spans if chosen is None else [Span(*edges) for edges in chosen]

    def fill_span(self, span: Span) -> None:
        n_masked = len(self.asked(span))
        n_steps = n_masked if span.n_steps is None else min(span.n_steps, n_masked)
        limit = self.sampler.max_steps(n_masked, self.settings.options) if self.sampler.max_steps else n_masked
        for step in range(limit):
            state = self.state(step, n_masked, n_steps, span)
            has_masks = bool(self.asked(span).size)
            if not has_masks and not (self.sampler.polishes and self.sampler.polishes(state, self.settings.options)):
                return
            scores = self.predict(span)
            opinions = () if self.guide is None else self.guide.opinions(scores, self.stats.steps)
            state = replace(state, left_out=partial(self.left_out, span), guide=opinions)
            commits = self.sampler.select(scores, state, self.settings.options)
            self.apply(commits, scores)
            if not has_masks and not commits.positions.size:
                return
        assert not self.asked(span).size, f"{self.sampler.name} left masks after {limit} steps"

    def asked(self, span: Span) -> Positions:
        """Masked positions of the span that can still appear in the text."""
        positions = self.canvas.masked(span.start, span.end)
        if not self.sampler.needs.ends_at_stop:
            return positions
        last = self.canvas.prompt_len + self.canvas.gen_len
        written = self.canvas.generated(self.block.start, min(self.block.end, last))
        stops = written[np.isin(self.canvas.ids[written], self.settings.stop_ids)]
        return positions[positions < stops[0]] if stops.size else positions

    def left_out(self, span: Span) -> LeftOut:
        assert self.sampler.needs.needs_left_out, f"{self.sampler.name} does not say that it needs left_out"
        return self.predictor.left_out(self.canvas.generated(span.start, span.end), self.stats.steps)

    def predict(self, span: Span) -> Scores:
        needs, positions, number = self.sampler.needs, self.asked(span), self.stats.steps
        if self.first is not None:
            known, self.first = self.first, None
            return known.of(positions)
        if needs.needs_placed:
            positions = np.union1d(positions, self.canvas.generated(self.block.start, self.block.end))
        if needs.needs_whole_text:
            reach = self.predictor.cache.step_window.end
            positions = np.union1d(positions, self.canvas.masked(self.block.start, reach))
        return self.predictor.scores(positions, number)

    def state(self, step: int, n_masked: int, n_steps: int, span: Span) -> SelectState:
        return SelectState(
            step=step,
            n_masked=n_masked,
            n_steps=n_steps,
            span=(span.start, span.end),
            block=(self.block.start, self.block.end),
            canvas=self.canvas,
            progress=self.plan.n_filled / max(self.plan.n_to_fill, 1),
            number=self.stats.steps,
            sampling=self.settings.sampling,
            memory=self.memory,
            tokens=self.settings.tokens,
            stop_ids=self.settings.stop_ids,
            filter=self.settings.filter,
        )

    def apply(self, commits: Commits, scores: Scores) -> None:
        is_new = self.canvas.is_masked[commits.positions]
        shown = self.canvas.is_masked[scores.positions] | np.isin(scores.positions, commits.positions)
        if self.sampler.needs.can_edit:
            self.canvas.place(commits.positions, commits.ids)
            self.canvas.hide(commits.hidden)
        else:
            assert commits.positions.size and not commits.hidden.size, f"{self.sampler.name} committed nothing"
            self.canvas.commit(commits.positions, commits.ids)
        self.canvas.confidence[scores.positions[shown]] = scores.confidence[shown]
        self.memory = commits.memory
        self.stats.steps += 1
        self.plan.filled(int(is_new.sum()) - len(commits.hidden))
        self.after_step()
