"""What every sampler is: a pure function from the scores of masked positions to the ones it commits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlm_edge.runtime.scores import Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a sampler asks of the loop; the loop refuses a need that it does not serve."""

    needs_topk: bool = False
    needs_full_logits: bool = False
    can_edit: bool = False  # may change tokens that are committed already
    needs_soft_input: bool = False
    max_window: int | None = None
    extra_passes: int = 0  # forward passes per block beyond one per step


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectState:
    """Where the loop stands inside the (sub-)block that is being filled."""

    step: int  # 0 at the first selection in this (sub-)block
    n_masked: int  # masked slots when it began
    n_steps: int  # steps planned for it, 1 .. n_masked
    threshold: float

    @property
    def quota(self) -> int:
        """Tokens of this step: n_masked // n_steps, and one more in the first n_masked % n_steps steps."""
        return self.n_masked // self.n_steps + (self.step < self.n_masked % self.n_steps)


@dataclass(frozen=True, slots=True)
class Commits:
    """Rows of the scores that turn into tokens, as absolute positions and ids, positions ascending."""

    positions: NDArray[np.int64]  # [n]
    ids: NDArray[np.int64]  # [n]


Select = Callable[[Scores, SelectState], Commits]


@dataclass(frozen=True, slots=True)
class Sampler:
    name: str
    select: Select
    needs: Needs
    options: tuple[str, ...]  # the settings that belong to this sampler and to no other


def most_confident_first(scores: Scores) -> NDArray[np.int64]:
    """Rows by falling confidence; equal confidences by rising position."""
    return np.lexsort((scores.positions, -scores.confidence)).astype(np.int64)


def commit_rows(scores: Scores, rows: NDArray[np.int64]) -> Commits:
    rows = np.sort(rows)
    return Commits(scores.positions[rows], scores.ids[rows])
