"""Caches for full attention, where every stored key and value is that of a text which has changed since.

PrefixCache  one pass over everything at the start of a block, then [block start, end of text) only.
DualCache    the same, then the block only (Fast-dLLM, Wu et al. 2025, arXiv 2505.22618, section 3.2).
FreeCache    one pass over everything at the first step, then [border, end of text), where the border follows the present
             block at a distance. What it passes is frozen: stored by the pass that sees it for the last time (FlashDLM,
             Hu et al. 2025, arXiv 2505.21467, section 3.1, whose code has a window of 512).

With a refresh at every step all three are NoCache. FreeCache is that also where its window reaches to position 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlm_edge.runtime.blocks import Block
from dlm_edge.runtime.counted_model import CountedModel, Positions, StepWindow
from dlm_edge.runtime.step_model import Logits


class ApproximateCache:
    """What they share: when to refresh, and the pass that does it."""

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

    def settle(self) -> None:
        pass

    def skip(self, steps: int) -> None:
        self.step += steps

    def narrow(self, end: int) -> None:
        self.end = end

    def refresh(self, positions: Positions) -> Logits:
        start = self.refresh_start
        logits = self.model.store(start, self.length, start, positions, stored_end=self.stored_end)
        self.model.plan.restart()
        return logits

    @property
    def refresh_start(self) -> int:
        """What lies before is read as it is stored."""
        return 0

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


class FreeCache(ApproximateCache):
    """`window`: positions right before the present block that every step computes anew. Of a group of keys that has its
    scales in common and lies on both sides of the border, all are, once per block.

    `refresh_every` counts the steps of the whole request: each such step is a pass over everything.
    """

    def __init__(self, model: CountedModel, refresh_every: int | None, window: int) -> None:
        super().__init__(model, refresh_every)
        self.window = window
        self.stored: int | None = None  # how far, by the passes so far

    def start_block(self, block: Block) -> None:
        self.first = free_border(block, self.window, self.model.shift)
        self.model.plan.restart()

    @property
    def until_refresh(self) -> int | None:
        if self.stored != self.first:
            return 0
        return None if self.refresh_every is None else -self.step % self.refresh_every

    def refresh(self, positions: Positions) -> Logits:
        """A pass over everything where one is due, otherwise over what is not frozen yet."""
        logits = super().refresh(positions)
        self.stored = self.first
        return logits

    @property
    def refresh_start(self) -> int:
        is_due = self.refresh_every is not None and (self.step - 1) % self.refresh_every == 0
        if self.stored is None or is_due:
            return 0
        return self.stored - self.stored % self.model.model.store_multiple

    @property
    def step_window(self) -> StepWindow:
        return StepWindow(self.first, self.length, self.first)

    @property
    def stored_end(self) -> int:
        return self.first


def free_border(block: Block, window: int, shift: int) -> int:
    """Where FreeCache computes from; with a shift the row before the block is needed."""
    return max(block.start - max(window, shift), 0)
