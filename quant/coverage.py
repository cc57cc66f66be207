"""Whether the calibration data can determine the statistics taken from it: how much there is, and how varied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_edge.families.spec import ModelSpec
from dlm_edge.quant.state_batch import Batch

PLENTY = 2  # weighted tokens per input of the widest layer; with fewer than one its second moment is singular


@dataclass(frozen=True, slots=True)
class Coverage:
    tokens: int  # with a weight in the statistics, over all states
    effective_tokens: float  # (sum of weights)^2 / sum of squared weights: as many tokens of equal weight say as much
    widest: int  # inputs of the widest linear layer
    distinct_ids: int  # token ids that appear, masks aside
    vocab_size: int

    @property
    def tokens_per_input(self) -> float:
        return self.tokens / self.widest

    @property
    def vocabulary_share(self) -> float:
        return self.distinct_ids / self.vocab_size

    def warnings(self) -> list[str]:
        if self.tokens_per_input >= PLENTY:
            return []
        rank = "so its statistics are singular and damping decides" if self.tokens < self.widest else "which is little"
        return [
            f"{self.tokens} weighted calibration tokens for {self.widest} inputs of the widest layer, {rank}: "
            f"give at least {PLENTY * self.widest}"
        ]


def measure_coverage(batches: Sequence[Batch], spec: ModelSpec) -> Coverage:
    weights = torch.cat([b.weights.flatten().double() for b in batches])
    seen = torch.zeros(spec.embedding_rows, dtype=torch.bool)
    for batch in batches:
        seen[batch.ids[batch.weights > 0]] = True
    seen[spec.conventions.mask_id] = False
    return Coverage(
        tokens=int((weights > 0).sum()),
        effective_tokens=float(weights.sum() ** 2 / weights.square().sum()),
        widest=max(spec.hidden_size, spec.q_width, spec.intermediate_size),
        distinct_ids=int(seen.sum()),
        vocab_size=spec.vocab_size,
    )


def effective_rank(hessian: Tensor) -> float:
    """Participation ratio trace(H)^2 / trace(H^2) of a second moment [n, n]: 1 to n directions that carry the inputs.

    n equal eigenvalues give n, one that dominates gives 1; 0 for a matrix of zeros. No decomposition is needed.
    """
    squares = float(hessian.double().square().sum())
    return float(hessian.double().trace()) ** 2 / squares if squares > 0 else 0.0
