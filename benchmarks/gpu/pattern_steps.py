"""PatternAttention of one layer: a whole sequence attending to itself, dense, measuring, and by kept pairs of blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from dlm_edge.kernels.pattern_attention.reference import pattern_attention
from dlm_edge.kernels.select_pages.reference import DENSE, DENSE_KEEP, REUSE_PAGES, Policy
from dlm_edge.kernels.triton import launch_pattern

STEPS = {"whole dense": DENSE, "whole measured": DENSE_KEEP, "whole sparsed": REUSE_PAGES}
KEPT = 0.3  # share of the key blocks, as published
PROMPT = 0.75  # of the sequence


@dataclass(frozen=True)
class SequenceShape:
    model: str
    n_heads: int
    n_kv_heads: int
    head_dim: int
    length: int
    block_size: int


class PatternWork:
    def __init__(self, shape: SequenceShape, device: str = "cuda", seed: int = 0) -> None:
        self.shape = s = shape
        rng = torch.Generator(device).manual_seed(seed)

        def normal(heads: int) -> torch.Tensor:
            return torch.randn((1, heads, s.length, s.head_dim), generator=rng, device=device).half()

        self.q, self.k, self.v = normal(s.n_heads), normal(s.n_kv_heads), normal(s.n_kv_heads)
        n_slots = -(-s.length // s.block_size)
        self.pattern = torch.zeros((s.n_heads, n_slots, n_slots), dtype=torch.uint8, device=device)
        self.stats = torch.zeros(4)

    def policy(self, name: str) -> Policy:
        n_blocks, prompt = self.pattern.shape[1], int(PROMPT * self.shape.length) // self.shape.block_size
        kept = [int(KEPT * n) + 1 for n in (prompt, n_blocks - prompt)]
        return Policy(STEPS[name], sink=prompt, n_pages=kept[0], n_active=kept[1], page_size=self.shape.block_size)

    def step(self, name: str) -> torch.Tensor:
        out, self.stats = launch_pattern.pattern_attention(self.q, self.k, self.v, self.policy(name), self.pattern)
        return out

    def prepare(self, name: str) -> Callable[[], object]:
        """The step; the pattern that it reads has been chosen."""
        if name == "whole sparsed":
            self.step("whole measured")
        return lambda: self.step(name)

    def density(self) -> float:
        """Of the step that ran last."""
        _, read, pairs, _ = self.stats.tolist()
        return read / pairs

    def bytes_read(self) -> float:
        """Queries, keys and values, once: this step is bound by arithmetic."""
        return float(sum(x.nbytes for x in (self.q, self.k, self.v)))

    def error(self, name: str) -> float:
        """Of the output; infinite when the pattern is not the definition's.

        Means are added in another order than NumPy's, so that blocks with nearly equal ones may change places: the
        pattern may differ in 1 of 100 pairs.
        """
        self.prepare(name)
        before = self.pattern.cpu().numpy()
        out = self.step(name).cpu().numpy().astype(np.float32)
        wanted = pattern_attention(
            *(x.cpu().numpy().astype(np.float32) for x in (self.q, self.k, self.v)), self.policy(name), before
        )  # fmt: skip
        if np.mean(self.pattern.cpu().numpy() != wanted.pattern) > 0.01:
            return float("inf")
        return float(np.abs(out - wanted.out).max())

    def sdpa(self) -> torch.Tensor:
        grouped = self.shape.n_heads != self.shape.n_kv_heads
        return torch.nn.functional.scaled_dot_product_attention(self.q, self.k, self.v, enable_gqa=grouped)
