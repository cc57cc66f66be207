"""Where the keys and values of finished positions come from: the policies over one step graph.

BlockCache   block-causal families. Exact: finished blocks never see later ones, so their K/V is stored once, by a
             pass over the clean block or the next block's first step, and steps run the current block only.
NoCache      recomputes the whole visible sequence at every step. The definition the others are compared with.

Those for full attention are approximate, see approximate_caches.py.

With logit_shift 1 the scores of position p are row p - 1. The approximate windows therefore start one position
early; BlockCache keeps the last row of the clean pass, which saw exactly what recomputation would show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import Conventions
from dlm_edge.runtime.approximate_caches import DualCache, FreeCache, PrefixCache, free_border
from dlm_edge.runtime.blocks import Block
from dlm_edge.runtime.counted_model import CountedModel, Positions, StepWindow
from dlm_edge.runtime.step_model import FULL_ATTENTION, Logits

__all__ = ["Cache", "CountedModel", "StepWindow", "check_cache_fits", "largest_step_window", "open_cache"]

NO_ROWS = np.empty(0, np.int64)
FREE_WINDOW = 512  # positions; that of FreeCache's published code


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

    def settle(self) -> None:
        """Have stored what `step_window` reads, before runs on it that are not steps of this cache."""

    def skip(self, steps: int) -> None:
        """So many steps were evaluated otherwise, on `step_window`."""

    def narrow(self, end: int) -> None:
        """The present block ends at `end`, earlier than `start_block` was told."""

    def finish_block(self) -> None:
        """The current block is clean and another one follows. What it holds does not change any more."""


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

    def settle(self) -> None:
        pass

    def skip(self, steps: int) -> None:
        pass

    def narrow(self, end: int) -> None:
        pass

    def finish_block(self) -> None:
        pass


class BlockCache:
    """Where `fuses`, finished blocks wait until a step needs them: the next block's first step is one run over them and
    the block, gives logits of the block, and stores what waited. Weights are read once instead of twice, and blocks
    that no step needs are never run.

    No row of a finished block sees the next one, so what is stored is the same as after a run of its own, and so is
    what the step reads, but for float16's rounding where keys are stored so. Sums over other windows round otherwise,
    as in recomputation; where a bundle rounds activations to int8, that moves some of them by a code. On one CPU thread
    the run takes 0.6 of the time of both with blocks of 4, 0.8 with 16, 0.95 with 128, and as long with 512.

    A run of its own remains
    - with logit_shift 1: its last row predicts the first position of the block, in some families before its first step;
    - with attention that is not dense, whose first step leaves state for the rows of its window;
    - where codes are stored: the step would read what they are made of;
    - for the prompt, whose time is told apart.
    """

    def __init__(self, model: CountedModel, block_length: int, prefill_chunk: int) -> None:
        self.model, self.length = model, block_length
        self.chunk = max(prefill_chunk // block_length, 1) * block_length  # whole blocks see each other
        self.fuses = not model.shift and model.plan.settings.policy == "dense" and model.model.stores_floats
        self.most_waiting = max(self.chunk - block_length, block_length)  # positions that a block's first step stores
        self.block = Block(0, 0, ())
        self.stored = 0  # [stored, block.start) is clean and waits
        self.carried: Logits | None = None  # the row that predicts the first position of the next block

    def prefill(self, end: int) -> int:
        """Store the prompt's whole blocks, but for those that are kept from the request before."""
        # With a shift the row that predicts the next position is needed, so the last block is computed again.
        known = self.model.canvas.ids[: end - self.length * (self.model.shift and end > 0)]
        self.stored = kept = self.model.model.keep(known, self.length)
        for start in range(kept, end, self.chunk):
            self._store(min(start + self.chunk, end), predict_next=start + self.chunk >= end)
        return kept

    def start_block(self, block: Block) -> None:
        self.block = block
        self.model.plan.restart()

    @property
    def step_window(self) -> StepWindow:
        return StepWindow(self.block.start, self.block.end, self.block.start)

    until_refresh = None

    def rows(self, positions: Positions) -> Sequence[Logits]:
        known = self.known_row(positions)
        if known is None:
            return list(self._step(positions))
        rest = self._step(positions[1:]) if len(positions) > 1 else ()
        return [known, *rest]

    def known_row(self, positions: Positions) -> Logits | None:
        if not self.model.shift or not positions.size or positions[0] > self.block.start:
            return None
        assert self.carried is not None, "a shifted model was asked for the position after nothing"
        return self.carried

    def settle(self) -> None:
        self._store_all_but(0)

    def skip(self, steps: int) -> None:
        pass

    def narrow(self, end: int) -> None:
        raise AssertionError("blocks that are stored have the length that the model was trained for")

    def finish_block(self) -> None:
        if not self.fuses:
            self._store(self.block.end, predict_next=True)

    def _step(self, positions: Positions) -> Logits:
        """Over the current block, and over the finished ones before it that wait."""
        self._store_all_but(self.most_waiting)
        start, end = self.block.start, self.block.end
        logits = self.model.step(self.stored, end, self.stored, positions, stored_end=start)
        self.stored = start
        return logits

    def _store_all_but(self, waiting: int) -> None:
        while self.block.start - self.stored > waiting:
            self._store(min(self.stored + self.chunk, self.block.start), predict_next=False)

    def _store(self, end: int, *, predict_next: bool) -> None:
        """A pass over clean blocks up to `end`, which leaves their K/V in the cache."""
        wanted = np.array([end]) if self.model.shift and predict_next else NO_ROWS
        logits = self.model.store(self.stored, end, self.stored, wanted)
        self.stored, self.carried = end, logits[0].copy() if wanted.size else None


def check_cache_fits(kind: str, conventions: Conventions) -> None:
    """E-PARAM when the family's attention has no cache of this kind."""
    is_full = conventions.attention == "full"
    if kind not in (("none", "prefix", "dual", "freecache") if is_full else ("none", "block")):
        other = "prefix, dual, freecache or none" if is_full else "block (which is exact) or none"
        message = f"the {kind} cache does not fit {conventions.attention} attention"
        raise UsageProblem("E-PARAM", message, f"this model has the caches {other}")


def open_cache(
    kind: str,
    model: CountedModel,
    conventions: Conventions,
    *,
    refresh_every: int | None,
    prefill_chunk: int,
    window: int = FREE_WINDOW,
) -> Cache:
    """The cache called `kind`: block, none, prefix, dual or freecache. `window` is that of freecache."""
    check_cache_fits(kind, conventions)
    if kind == "block":
        return BlockCache(model, conventions.block_length, prefill_chunk)
    if kind == "none":
        return NoCache(model)
    if kind == "freecache":
        return FreeCache(model, refresh_every, window)
    return {"prefix": PrefixCache, "dual": DualCache}[kind](model, refresh_every)


def largest_step_window(kind: str, blocks: Sequence[Block], length: int, shift: int, window: int = FREE_WINDOW) -> int:
    """Rows of the widest window that `step` runs on: those whose attention state is kept."""
    if kind == "none":
        return 1
    if kind == "freecache":
        return length - free_border(blocks[0], window, shift)
    ends = [length if kind == "prefix" else block.end for block in blocks]
    return max(end - max(block.start - shift, 0) for block, end in zip(blocks, ends, strict=True))
