"""The denoising loop: blocks left to right, and in each block a few rounds of predict, select, commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dlm_edge.errors import InputFileError, UsageProblem
from dlm_edge.families.spec import Conventions
from dlm_edge.runtime.attention import EXACT, AttentionSettings
from dlm_edge.runtime.blocks import Block, Canvas, Span, grid_edges, plan_blocks
from dlm_edge.runtime.cache import Cache, CountedModel, largest_step_window, open_cache
from dlm_edge.runtime.samplers.contract import Commits, Sampler, SelectState
from dlm_edge.runtime.scores import Sampling, ScoreReducer, Scores
from dlm_edge.runtime.step_model import StepModel, Terminated


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSettings:
    """Everything the loop needs to know about one request; ranges are checked in GenerateSettings."""

    gen_len: int
    block_length: int
    sub_block_length: int
    steps: int | None = None  # of the whole request; None: one token per step
    threshold: float = 2.0
    cache: str = "none"
    refresh_every: int | None = None  # approximate caches: None refreshes at the start of each block only
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: tuple[int, ...] = ()
    stop_texts: tuple[str, ...] = ()
    min_new_tokens: int = 0  # no stop id before
    prefill_chunk: int = 512  # positions per prefill pass
    attention: AttentionSettings = EXACT
    fixed: Mapping[int, int] = field(
        default_factory=dict
    )  # tokens given in advance, beyond gen_len too: offset after the prompt -> id


StopReason = Literal["eos", "stop", "length", "cancelled"]


@dataclass(slots=True)
class Stats:
    stop_reason: StopReason = "length"
    steps: int = 0  # selections
    forward_passes: int = 0  # runs of the model: prefill, steps and clean passes
    prefill_seconds: float = 0.0
    prefill_passes: int = 0
    reused_tokens: int = 0  # of the prompt, stored before the request began
    blocks: int = 0  # blocks begun that had something to fill
    density: float = 1.0  # of prefix K/V read by the steps, page bounds included; sparsed: of pairs of blocks
    active_rows: float = 1.0  # share of the steps' rows that attended to the prefix afresh
    pages_read: float = 0.0  # by a step with a prefix, of each layer and K/V head


@dataclass(frozen=True, slots=True)
class Progress:
    """What `on_step` receives. The canvas is the loop's own: read it, and do not keep it."""

    step: int  # selections so far
    block: int
    n_blocks: int
    block_end: int
    canvas: Canvas


OnStep = Callable[[Progress], bool | None]  # True ends the text
Turns = Generator[None, None, tuple[list[int], Stats]]


class _Stop(Exception):
    """Ended between two steps."""

    def __init__(self, reason: StopReason) -> None:
        self.reason = reason


def denoise(
    model: StepModel,
    conventions: Conventions,
    prompt_ids: Sequence[int],
    settings: DecodeSettings,
    sampler: Sampler,
    on_step: OnStep = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[list[int], Stats]:
    """Generate up to `settings.gen_len` tokens after the prompt.

    Returns the tokens before the first stop id, and what it took. `on_step` ends the text by returning True. When
    cancelled, the tokens are those that were final by then. Raises E-PARAM, E-PROMPT and E-NUM.
    """
    turns = denoise_in_turns(model, conventions, prompt_ids, settings, sampler, on_step, cancelled)
    while True:
        try:
            next(turns)
        except StopIteration as end:
            result: tuple[list[int], Stats] = end.value
            return result


def denoise_in_turns(
    model: StepModel,
    conventions: Conventions,
    prompt_ids: Sequence[int],
    settings: DecodeSettings,
    sampler: Sampler,
    on_step: OnStep,
    cancelled: Callable[[], bool],
) -> Turns:
    """`denoise` that yields after the prompt and after every block: `model` must then keep the state of this sequence."""
    check_request(conventions, prompt_ids, sampler)
    blocks, canvas = lay_out(conventions, prompt_ids, settings)
    rows = largest_step_window(settings.cache, blocks, len(canvas.ids), conventions.logit_shift)
    model.reset(len(canvas.ids), settings.attention, rows)
    loop = _Loop(model, conventions, canvas, settings, sampler, on_step, cancelled, len(blocks))
    try:
        yield from loop.fill(blocks)
    except _Stop as stop:
        loop.stats.stop_reason = stop.reason
    except Terminated:
        loop.stats.stop_reason = "cancelled"
    loop.stats.forward_passes = loop.model.passes
    stats, read = loop.stats, loop.model.density
    stats.density, stats.active_rows, stats.pages_read = read.share, read.active_share, read.pages_read
    return canvas.final_tokens(settings.stop_ids)[0], stats


def check_request(conventions: Conventions, prompt_ids: Sequence[int], sampler: Sampler) -> None:
    if conventions.logit_shift and not prompt_ids:
        message = "the prompt is empty, and this model predicts each token from the one before it"
        raise UsageProblem("E-PROMPT", message, "give at least one token")
    if conventions.attention != "full" and conventions.grid_origin != "zero":
        message = f"{conventions.attention} attention with a grid from the prompt's end is not supported"
        raise InputFileError("E-MANIFEST", message, "export a model whose block grid begins at position 0")
    needs = sampler.needs
    assert not (needs.needs_topk or needs.needs_full_logits or needs.can_edit or needs.needs_soft_input), sampler.name
    assert needs.max_window is None and not needs.extra_passes, sampler.name


def lay_out(
    conventions: Conventions, prompt_ids: Sequence[int], settings: DecodeSettings
) -> tuple[list[Block], Canvas]:
    length = max(settings.gen_len, 1 + max(settings.fixed, default=-1))
    start, end = grid_edges(conventions, len(prompt_ids), length, settings.block_length)
    blocks = plan_blocks(
        start,
        end,
        prompt_len=len(prompt_ids),
        block_length=settings.block_length,
        sub_block_length=settings.sub_block_length,
        steps=settings.steps,
    )
    return blocks, Canvas(prompt_ids, settings.gen_len, end, conventions.mask_id, settings.fixed)


class _Loop:
    def __init__(
        self,
        model: StepModel,
        conventions: Conventions,
        canvas: Canvas,
        settings: DecodeSettings,
        sampler: Sampler,
        on_step: OnStep,
        cancelled: Callable[[], bool],
        n_blocks: int,
    ) -> None:
        self.model = CountedModel(model, canvas, conventions, settings.attention)
        self.cache: Cache = open_cache(
            settings.cache,
            self.model,
            conventions,
            refresh_every=settings.refresh_every,
            prefill_chunk=settings.prefill_chunk,
        )
        first = canvas.prompt_len + settings.min_new_tokens
        self.reducer = ScoreReducer(conventions.mask_id, settings.sampling, settings.stop_ids, first)
        self.canvas, self.settings, self.sampler = canvas, settings, sampler
        self.on_step, self.cancelled, self.n_blocks = on_step, cancelled, n_blocks
        rule = conventions.first_token_rule == "previous_logit" and conventions.attention != "full"
        self.first_token_is_known = rule  # before the block's first step, from the last clean position
        self.stats = Stats()

    def fill(self, blocks: Sequence[Block]) -> Iterator[None]:
        self._check_cancelled()
        began = time.perf_counter()
        self.stats.reused_tokens = self.cache.prefill(blocks[0].start)
        self.stats.prefill_seconds = time.perf_counter() - began
        self.stats.prefill_passes = self.model.passes
        yield
        for index, block in enumerate(blocks):
            self.cache.start_block(block)
            self.stats.blocks += bool(len(self.canvas.masked(block.start, block.end)))
            self._fill_block(index, block)
            if self._has_stop_id(block):
                self.stats.stop_reason = "eos"
                return
            if index + 1 < len(blocks):
                self._check_cancelled()
                self.cache.finish_block()
                yield

    def _fill_block(self, index: int, block: Block) -> None:
        if self.first_token_is_known and block.start > 0 and self.canvas.is_masked[block.start]:
            scores = self._predict(np.array([block.start]))
            self._commit(Commits(scores.positions, scores.ids), scores, index, block)
        for span in block.spans:
            self._fill_span(span, index, block)

    def _fill_span(self, span: Span, index: int, block: Block) -> None:
        n_masked = len(self.canvas.masked(span.start, span.end))
        n_steps = n_masked if span.n_steps is None else min(span.n_steps, n_masked)
        for step in range(n_masked):
            positions = self.canvas.masked(span.start, span.end)
            if not positions.size:
                return
            scores = self._predict(positions)
            state = SelectState(step=step, n_masked=n_masked, n_steps=n_steps, threshold=self.settings.threshold)
            self._commit(self.sampler.select(scores, state), scores, index, block)

    def _predict(self, positions: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Scores:
        self._check_cancelled()
        return self.reducer.reduce(self.cache.rows(positions), positions, self.stats.steps)

    def _commit(self, commits: Commits, scores: Scores, index: int, block: Block) -> None:
        assert commits.positions.size, f"{self.sampler.name} committed nothing"
        self.canvas.commit(commits.positions, commits.ids)
        self.canvas.confidence[scores.positions] = scores.confidence
        self.stats.steps += 1
        self.model.plan.filled(len(commits.positions))
        if self.on_step(Progress(self.stats.steps, index, self.n_blocks, block.end, self.canvas)):
            raise _Stop("stop")

    def _has_stop_id(self, block: Block) -> bool:
        """Whether a generated token of this block ends the text; the prompt's own stop ids do not."""
        first, last = max(block.start, self.canvas.prompt_len), self.canvas.prompt_len + self.canvas.gen_len
        return bool(np.isin(self.canvas.ids[first : min(block.end, last)], self.settings.stop_ids).any())

    def _check_cancelled(self) -> None:
        if self.cancelled():
            raise _Stop("cancelled")
