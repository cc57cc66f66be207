"""A step model on one canvas: the passes that caches make over it, counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlm_edge.families.spec import Conventions
from dlm_edge.kernels.quantized_pages.planes import BOTH
from dlm_edge.kernels.select_pages.reference import Policy
from dlm_edge.runtime.attention import AttentionPlan, AttentionSettings, Density
from dlm_edge.runtime.blocks import Canvas
from dlm_edge.runtime.step_model import FULL_ATTENTION, Logits, StepModel

Positions = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepWindow:
    """What a denoising step runs on: positions [start, end) over the cache [0, cache_len)."""

    start: int
    end: int
    cache_len: int


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

    def step(
        self, start: int, end: int, cache_len: int, positions: Positions, *, stored_end: int | None = None
    ) -> Logits:
        """A pass that reads the prefix as the attention policy has it. What it computed of the window, up to
        `stored_end`, becomes part of the prefix."""
        stored_rows = 0 if stored_end is None else stored_end - start
        planes, policy = self.plan.planes, self.plan.of_step(end - start)
        logits = self.pass_over(start, end, cache_len, positions, policy, planes=planes, stored_rows=stored_rows)
        self.density.add(self.model.stats, end - start)
        if stored_rows:
            self.model.store(start, start + stored_rows)
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
