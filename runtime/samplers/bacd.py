"""Bounded adaptive confidence decoding (BACD, Lu et al. 2026, arXiv 2602.09555).

The threshold is the mean confidence of what this block has accepted so far, held between two bounds: easy blocks
demand more of every further token, hard ones less. In a block's first selection it is the highest confidence there.
All slots that reach it are committed, and the most confident one in any case.

The history is the sampler's memory, which begins empty with each block of each request; the paper's serving code
keeps it by place in the batch, where it can pass from one request to another. A first token that follows from the
clean text before the block is no selection of the block and does not count.

Limits: equal bounds are `threshold`; equal bounds above 1 are `static`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.samplers.contract import (
    Commits,
    Sampler,
    SamplerOptions,
    SelectState,
    Threshold,
    commit_where,
)
from dlm_edge.runtime.scores import Scores


class Options(SamplerOptions, frozen=True):
    lower: Threshold = 0.6  # bounds of the threshold
    upper: Threshold = 0.9

    def __post_init__(self) -> None:
        if self.lower > self.upper:
            message = f"lower is {self.lower}, above upper, {self.upper}"
            raise UsageProblem("E-PARAM", message, "give bounds in their order")


@dataclass(frozen=True, slots=True)
class History:
    """Of the tokens that this block has accepted."""

    total: float  # sum of their confidences
    count: int


def select(scores: Scores, state: SelectState, options: Options) -> Commits:
    history: History = state.memory or History(0.0, 0)
    wanted = history.total / history.count if history.count else float(scores.confidence.max())
    threshold = min(max(wanted, options.lower), options.upper)
    commits = commit_where(scores, scores.confidence >= threshold)
    accepted = scores.of(commits.positions).confidence
    return replace(commits, memory=History(history.total + float(accepted.sum()), history.count + len(accepted)))


SAMPLER = Sampler(name="bacd", select=select, options=Options)
