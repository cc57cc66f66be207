"""Low-confidence remasking with a fixed quota (LLaDA, Nie et al. 2025, arXiv 2502.09992, section 2.4).

With as many steps as masks it commits exactly one token per step, and that decode is what every other
sampler is compared with.
"""

from __future__ import annotations

from dlm_edge.runtime.samplers.contract import (
    Commits,
    Sampler,
    SamplerOptions,
    SelectState,
    Steps,
    commit_rows,
    most_confident_first,
)
from dlm_edge.runtime.scores import Scores


class Options(SamplerOptions, frozen=True):
    steps: Steps | None = None  # of the whole request; None: one token per step


def select(scores: Scores, state: SelectState, options: SamplerOptions) -> Commits:
    return commit_rows(scores, most_confident_first(scores)[: state.quota])


SAMPLER = Sampler(name="static", select=select, options=Options)
