"""Where the keys and values of finished positions come from: four policies over one step graph.

BlockCache   block-causal families. Exact: finished blocks never see later ones, so their K/V is stored once, by
             a pass over the clean block, and a step runs the current block only.
NoCache      recomputes the whole visible sequence at every step. The definition the others are compared with.
PrefixCache  full attention. One pass over everything at the start of a block, then [block start, end) only.
DualCache    the same, then the block only (Fast-dLLM, Wu et al. 2025, arXiv 2505.22618, section 3.2). Both are
             approximate, because stored K/V does not see the tokens committed since; with a refresh at every
             step they are NoCache.

With logit_shift 1 the scores of position p are row p - 1. The approximate windows therefore start one position
early; BlockCache keeps the last row of the clean pass, which saw exactly what recomputation would show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import Conventions
from dlm_edge.kernels.quantized_pages.planes import BOTH
from dlm_edge.kernels.select_pages.reference import Policy
from dlm_edge.runtime.attention import AttentionPlan, AttentionSettings, Density
from dlm_edge.runtime.blocks import Block, Canvas
from dlm_edge.runtime.step_model import FULL_ATTENTION, Logits, StepModel

Positions = NDArray[np.int64]
NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class StepWindow:
    """What a denoising step runs on: positions [start, end) over the cache [0, cache_len)."""

    start: int
    end: int
    cache_len: int


class Cache(Protocol):
    """`until_refresh`: how many more steps from here on run on `step_window`, over what is stored now; None: all."""

    @property
    def step_window(self) -> StepWindow: ...

    @property
    def until_refresh(self) -> int | None: ...

    def prefill(self, end: int) -> int:
        """Store what is final before the first block, which begins at `end`; says how much of it was stored already."""

    def start_block(self, block: Block) -> None: ...

    def rows(self, positions: Positions) -> Sequence[Logits]:
        """Logits [vocab_size] for each of the positions of the current block, valid until the next call."""

    def known_row(self, positions: Positions) -> Logits | None:
        """Logits of the first of the positions where they do not depend on the window, otherwise None."""

    def skip(self, steps: int) -> None:
        """So many steps were evaluated otherwise, on `step_window`."""

    def narrow(self, end: int) -> None:
        """The present block ends at `end`, earlier than `start_block` was told."""

    def finish_block(self) -> None:
        """The current block is clean and another one follows."""


class CountedModel:
    """A model on one canvas, counting its forward passes and what they read of the prefix."""

    def __init__(
        self, model: StepModel, canvas: Canvas, conventions: Conventions, attention: AttentionSettings
    ) -> None:
        self.model, self.canvas = model, canvas
        self.shift = conventions.logit_shift
        lengths = {"full": FULL_ATTENTION, "causal": 1, "block_causal": conventions.block_length}
        self.attn_block = lengths[conventions.attention]
        self.plan = AttentionPlan(attention, canvas.prompt_len, int(canvas.is_masked.sum()))
        self.density = Density()
        self.passes = 0

    def run(self, start: int, end: int, cache_len: int, positions: Positions) -> Logits:
        """An exact pass over the window [start, end) of the canvas; logits of the rows that predict `positions`."""
        return self.pass_over(start, end, cache_len, positions, self.plan.of_exact_pass())

    def store(
        self, start: int, end: int, cache_len: int, positions: Positions, *, stored_end: int | None = None
    ) -> Logits:
        """The same, and what it computed of the window, up to `stored_end`, becomes part of the prefix."""
        kept = end if stored_end is None else stored_end
        logits = self.pass_over(start, end, cache_len, positions, self.plan.of_exact_pass(), stored_rows=kept - start)
        self.model.store(start, kept)
        return logits

    def step(self, start: int, end: int, cache_len: int, positions: Positions) -> Logits:
        """A pass that reads the prefix as the attention policy has it."""
        planes, policy = self.plan.planes, self.plan.of_step(end - start)
        logits = self.pass_over(start, end, cache_len, positions, policy, planes=planes)
        self.density.add(self.model.stats, end - start)
        return logits

    def run_fillings(
        self, window: StepWindow, fillings: Sequence[NDArray[np.int64]], positions: Sequence[Positions]
    ) -> list[list[Logits]]:
        """Logits of `positions[i]` where the window holds `fillings[i]`, by dense attention; nothing is stored."""
        length = window.end - window.start
        rows = [at - self.shift - window.start + i * length for i, at in enumerate(positions)]
        self.passes += 1 if self.model.batches_copies else len(fillings)
        flat = self.model.run_copies(
            np.stack(fillings), window.start, window.cache_len, self.attn_block, np.concatenate(rows)
        )
        ends = np.cumsum([len(at) for at in positions])
        return [list(part) for part in np.split(flat, ends[:-1])]

    def pass_over(
        self,
        start: int,
        end: int,
        cache_len: int,
        positions: Positions,
        policy: Policy,
        *,
        planes: int = BOTH,
        stored_rows: int = 0,
    ) -> Logits:
        self.passes += 1
        ids, rows = self.canvas.ids[start:end], positions - self.shift - start
        options = {"planes": planes, "stored_rows": stored_rows}
        return self.model.run(ids, start, cache_len, self.attn_block, rows, policy, **options)


class NoCache:
    def __init__(self, model: CountedModel) -> None:
        self.model = model
        self.is_full = model.attn_block == FULL_ATTENTION
        self.end = 0

    def prefill(self, end: int) -> int:
        return 0

    def start_block(self, block: Block) -> None:
        self.end = len(self.model.canvas.ids) if self.is_full else block.end

    @property
    def step_window(self) -> StepWindow:
        return StepWindow(0, self.end, 0)

    until_refresh = None

    def rows(self, positions: Positions) -> Sequence[Logits]:
        return list(self.model.step(0, self.end, 0, positions))

    def known_row(self, positions: Positions) -> Logits | None:
        return None

    def skip(self, steps: int) -> None:
        pass

    def narrow(self, end: int) -> None:
        pass

    def finish_block(self) -> None:
        pass


class BlockCache:
    def __init__(self, model: CountedModel, block_length: int, prefill_chunk: int) -> None:
        self.model, self.length = model, block_length
        self.chunk = max(prefill_chunk // block_length, 1) * block_length  # whole blocks see each other
        self.block = Block(0, 0, ())
        self.carried: Logits | None = None  # the row that predicts the first position of the next block

    def prefill(self, end: int) -> int:
        """Store the prompt's whole blocks, but for those that are kept from the request before."""
        # With a shift the row that predicts the next position is needed, so the last block is computed again.
        known = self.model.canvas.ids[: end - self.length * (self.model.shift and end > 0)]
        kept = self.model.model.keep(known, self.length)
        for start in range(kept, end, self.chunk):
            self._store(start, min(start + self.chunk, end), predict_next=start + self.chunk >= end)
        return kept

    def start_block(self, block: Block) -> None:
        self.block = block
        self.model.plan.restart()

    @property
    def step_window(self) -> StepWindow:
        return StepWindow(self.block.start, self.block.end, self.block.start)

    until_refresh = None

    def rows(self, positions: Positions) -> Sequence[Logits]:
        start, end = self.block.start, self.block.end
        known = self.known_row(positions)
        if known is None:
            return list(self.model.step(start, end, start, positions))
        rest = self.model.step(start, end, start, positions[1:]) if len(positions) > 1 else ()
        return [known, *rest]

    def known_row(self, positions: Positions) -> Logits | None:
        if not self.model.shift or not positions.size or positions[0] > self.block.start:
            return None
        assert self.carried is not None, "a shifted model was asked for the position after nothing"
        return self.carried

    def skip(self, steps: int) -> None:
        pass

    def narrow(self, end: int) -> None:
        raise AssertionError("blocks that are stored have the length that the model was trained for")

    def finish_block(self) -> None:
        self._store(self.block.start, self.block.end, predict_next=True)

    def _store(self, start: int, end: int, *, predict_next: bool) -> None:
        """A pass over clean blocks, which leaves their K/V in the cache."""
        wanted = np.array([end]) if self.model.shift and predict_next else NO_ROWS
        logits = self.model.store(start, end, start, wanted)
        self.carried = logits[0].copy() if wanted.size else None


class ApproximateCache:
    """What PrefixCache and DualCache share: when to refresh, and the pass that does it."""

    def __init__(self, model: CountedModel, refresh_every: int | None) -> None:
        self.model, self.refresh_every = model, refresh_every
        self.length = len(model.canvas.ids)
        self.step = 0
        self.first, self.end = 0, 0

    def prefill(self, end: int) -> int:
        return 0

    def start_block(self, block: Block) -> None:
        self.step = 0
        self.first, self.end = max(block.start - self.model.shift, 0), block.end

    @property
    def until_refresh(self) -> int | None:
        every = self.refresh_every
        return 0 if self.step == 0 else None if every is None else -self.step % every

    def rows(self, positions: Positions) -> Sequence[Logits]:
        refresh = self.until_refresh == 0
        self.step += 1
        return list(self.refresh(positions) if refresh else self.reuse(positions))

    def reuse(self, positions: Positions) -> Logits:
        window = self.step_window
        return self.model.step(window.start, window.end, window.cache_len, positions)

    def known_row(self, positions: Positions) -> Logits | None:
        return None

    def skip(self, steps: int) -> None:
        self.step += steps

    def narrow(self, end: int) -> None:
        self.end = end

    def refresh(self, positions: Positions) -> Logits:
        logits = self.model.store(0, self.length, 0, positions, stored_end=self.stored_end)
        self.model.plan.restart()
        return logits

    @property
    def stored_end(self) -> int:
        """How far the steps read what a refresh stored: quantized caches end there, with an exact tail."""
        raise NotImplementedError

    @property
    def step_window(self) -> StepWindow:
        raise NotImplementedError

    def finish_block(self) -> None:
        pass


class PrefixCache(ApproximateCache):
    @property
    def step_window(self) -> StepWindow:
        return StepWindow(self.first, self.length, self.first)

    @property
    def stored_end(self) -> int:
        return self.first


class DualCache(ApproximateCache):
    @property
    def step_window(self) -> StepWindow:
        return StepWindow(self.first, self.end, self.length)

    @property
    def stored_end(self) -> int:
        return self.length


def check_cache_fits(kind: str, conventions: Conventions) -> None:
    """E-PARAM when the family's attention has no cache of this kind."""
    is_full = conventions.attention == "full"
    if kind not in (("none", "prefix", "dual") if is_full else ("none", "block")):
        other = "prefix, dual or none" if is_full else "block (which is exact) or none"
        message = f"the {kind} cache does not fit {conventions.attention} attention"
        raise UsageProblem("E-PARAM", message, f"this model has the caches {other}")


def open_cache(
    kind: str, model: CountedModel, conventions: Conventions, *, refresh_every: int | None, prefill_chunk: int
) -> Cache:
    """The cache called `kind`: block, none, prefix or dual."""
    check_cache_fits(kind, conventions)
    if kind == "block":
        return BlockCache(model, conventions.block_length, prefill_chunk)
    if kind == "none":
        return NoCache(model)
    return {"prefix": PrefixCache, "dual": DualCache}[kind](model, refresh_every)


def largest_step_window(kind: str, blocks: Sequence[Block], length: int, shift: int) -> int:
    """Rows of the widest window that `step` runs on: those whose attention state is kept."""
    if kind == "none":
        return 1
    ends = [length if kind == "prefix" else block.end for block in blocks]
    return max(end - max(block.start - shift, 0) for block, end in zip(blocks, ends, strict=True))
