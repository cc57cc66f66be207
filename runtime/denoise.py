"""The denoising loop: blocks left to right, and in each block a few rounds of predict, select, commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlm_edge.errors import InputFileError, UsageProblem
from dlm_edge.families.spec import Conventions
from dlm_edge.runtime.blocks import Block, Canvas, Span, grid_edges, plan_blocks
from dlm_edge.runtime.cache import Cache, CountedModel, largest_step_window, open_cache
from dlm_edge.runtime.constraints.reducer import ConstrainedReducer
from dlm_edge.runtime.decode_settings import DecodeSettings, Stats, StopReason
from dlm_edge.runtime.drafting import DraftFiller
from dlm_edge.runtime.filling import BlockFiller
from dlm_edge.runtime.guide import Guide, GuideModel, check_guide
from dlm_edge.runtime.predicting import Predictor
from dlm_edge.runtime.samplers.contract import Sampler
from dlm_edge.runtime.scores import ScoreReducer
from dlm_edge.runtime.step_model import StepModel, Terminated


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
    sampler: Sampler[Any],
    on_step: OnStep = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
    guide: GuideModel | None = None,
) -> tuple[list[int], Stats]:
    """Generate up to `settings.gen_len` tokens after the prompt.

    Returns the tokens before the first stop id, and what it took. `on_step` ends the text by returning True. When
    cancelled, the tokens are those that were final by then. `guide` is for samplers that need one. Raises E-PARAM,
    E-PROMPT and E-NUM.
    """
    turns = denoise_in_turns(model, conventions, prompt_ids, settings, sampler, on_step, cancelled, guide)
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
    sampler: Sampler[Any],
    on_step: OnStep,
    cancelled: Callable[[], bool],
    guide: GuideModel | None = None,
) -> Turns:
    """`denoise` that yields after the prompt and after every block: the models must then keep the state of this sequence."""
    check_request(conventions, prompt_ids, sampler, None if guide is None else guide.conventions)
    blocks, canvas = lay_out(conventions, prompt_ids, settings)
    model.reset(len(canvas.ids), settings.attention, widest_step(settings, sampler, blocks, conventions))
    loop = _Loop(model, conventions, canvas, settings, sampler, on_step, cancelled, len(blocks), guide)
    try:
        yield from loop.fill(blocks)
    except _Stop as stop:
        loop.stats.stop_reason = stop.reason
    except Terminated:
        loop.stats.stop_reason = "cancelled"
    loop.stats.forward_passes = loop.model.passes
    stats, read = loop.stats, loop.model.density
    stats.guide_passes = 0 if loop.guide is None else loop.guide.model.passes
    stats.density, stats.active_rows, stats.pages_read = read.share, read.active_share, read.pages_read
    return canvas.final_tokens(settings.stop_ids)[0], stats


def check_request(
    conventions: Conventions, prompt_ids: Sequence[int], sampler: Sampler[Any], guide: Conventions | None = None
) -> None:
    if conventions.logit_shift and not prompt_ids:
        message = "the prompt is empty, and this model predicts each token from the one before it"
        raise UsageProblem("E-PROMPT", message, "give at least one token")
    if conventions.attention != "full" and conventions.grid_origin != "zero":
        message = f"{conventions.attention} attention with a grid from the prompt's end is not supported"
        raise InputFileError("E-MANIFEST", message, "export a model whose block grid begins at position 0")
    if sampler.needs.full_attention and conventions.attention != "full":
        message = f"the sampler {sampler.name} moves the borders of blocks, which this model was trained with"
        raise UsageProblem("E-PARAM", message, "use another sampler, or a model with full attention")
    if sampler.needs.needs_guide:
        if guide is None:
            message = f"the sampler {sampler.name} needs a second model that supervises, and none is open"
            raise UsageProblem("E-PARAM", message, "open the engine with a guide (--guide), or use another sampler")
        check_guide(guide, conventions, len(prompt_ids))
    if sampler.needs.needs_soft_input:
        message = f"the sampler {sampler.name} needs a checkpoint that was trained to read its own last guess"
        raise UsageProblem("E-PARAM", message, "use another sampler")


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


def widest_step(
    settings: DecodeSettings, sampler: Sampler[Any], blocks: Sequence[Block], conventions: Conventions
) -> int:
    """Rows of the widest window that a step runs on."""
    if sampler.border is not None:  # a block may become as long as the text
        blocks = [Block(blocks[0].start, blocks[-1].end, ())]
    shift, window = conventions.logit_shift, settings.cache_window
    return largest_step_window(settings.cache, blocks, blocks[-1].end, shift, window)


class _Loop:
    def __init__(
        self,
        model: StepModel,
        conventions: Conventions,
        canvas: Canvas,
        settings: DecodeSettings,
        sampler: Sampler[Any],
        on_step: OnStep,
        cancelled: Callable[[], bool],
        n_blocks: int,
        guide: GuideModel | None,
    ) -> None:
        self.model = CountedModel(model, canvas, conventions, settings.attention)
        self.cache: Cache = open_cache(
            settings.cache,
            self.model,
            conventions,
            refresh_every=settings.refresh_every,
            prefill_chunk=settings.prefill_chunk,
            window=settings.cache_window,
        )
        first = canvas.prompt_len + settings.min_new_tokens
        scorer = ScoreReducer(conventions.mask_id, settings.sampling, settings.stop_ids, first)
        constraint = settings.constraint
        reducer = scorer if constraint is None else ConstrainedReducer(constraint, scorer, canvas)
        predictor = Predictor(self.model, self.cache, scorer, reducer, self._check_cancelled, settings.guidance)
        self.canvas, self.settings, self.sampler = canvas, settings, sampler
        self.on_step, self.cancelled, self.n_blocks = on_step, cancelled, n_blocks
        rule = conventions.first_token_rule == "previous_logit" and conventions.attention != "full"
        needs_guide = sampler.needs.needs_guide
        # Before the block's first step, from the last clean position; a guide has its say on every token, however.
        self.first_token_is_known = rule and not needs_guide
        self.stats = Stats()
        self.guide: Guide | None = None
        if guide is not None and needs_guide:
            self.guide = Guide(guide, canvas, settings, conventions, self._check_cancelled)
        filler = BlockFiller if sampler.drafts is None else DraftFiller
        self.filler = filler(predictor, settings, sampler, self.stats, self._after_step, self.guide)
        self.index, self.block = 0, Block(0, 0, ())

    def fill(self, blocks: Sequence[Block]) -> Iterator[None]:
        self._check_cancelled()
        began = time.perf_counter()
        self.stats.reused_tokens = self.cache.prefill(blocks[0].start)
        if self.guide is not None:
            self.guide.prefill(blocks[0].start)
        self.stats.prefill_seconds = time.perf_counter() - began
        self.stats.prefill_passes = self.model.passes
        yield
        for block in self._blocks(blocks):
            self.block = block
            if self.guide is not None:
                self.guide.start_block(block)
            self.stats.blocks += bool(len(self.canvas.masked(block.start, block.end)))
            self.filler.fill(block, first_token_is_known=self.first_token_is_known)
            self.index += 1
            if self._has_stop_id(block):
                self.stats.stop_reason = "eos"
                return
            if block.end < len(self.canvas.ids):
                self._check_cancelled()
                self.cache.finish_block()
                if self.guide is not None:
                    self.guide.finish_block()
                yield

    def _blocks(self, planned: Sequence[Block]) -> Iterator[Block]:
        """Those of the grid, or as the sampler sets their borders."""
        if self.sampler.border is None:
            for block in planned:
                self.cache.start_block(block)
                yield block
            return
        start, last = planned[0].start, planned[-1].end
        assert self.sampler.window is not None
        length = self.sampler.window(self.settings.options, self.settings.gen_len, self.settings.block_length)
        while start < last:
            end = min(start + length, last)
            candidate = Block(start, end, (Span(start, end),))
            self.cache.start_block(candidate)
            block = self.filler.choose_border(candidate)
            self.cache.narrow(block.end)
            yield block
            start = block.end

    def _after_step(self) -> None:
        progress = Progress(self.stats.steps, self.index, self.n_blocks, self.block.end, self.canvas)
        if self.on_step(progress):
            raise _Stop("stop")

    def _has_stop_id(self, block: Block) -> bool:
        """Whether a generated token of this block ends the text; the prompt's own stop ids do not."""
        first, last = max(block.start, self.canvas.prompt_len), self.canvas.prompt_len + self.canvas.gen_len
        return bool(np.isin(self.canvas.ids[first : min(block.end, last)], self.settings.stop_ids).any())

    def _check_cancelled(self) -> None:
        if self.cancelled():
            raise _Stop("cancelled")
