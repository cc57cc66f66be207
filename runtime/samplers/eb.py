"""As many as their joint entropy allows (EB-Sampler, Ben-Hamu et al. 2025, arXiv 2505.24857, section 4).

By rising entropy, the slots are committed whose predecessors' entropies sum to at most gamma: what committing them
together instead of one after the other can lose is at most that sum. The first has no predecessor, so it is always
among them. 0.1 is what DiffusionGemma uses. With rule "each" it is the rule of dParallel (Chen et al. 2025,
arXiv 2509.26488), for the checkpoints trained for it: every slot of at most gamma, and the lowest one in any case;
theirs is 0.5.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np

from dlm_edge.runtime.samplers.contract import (
    Commits,
    Sampler,
    SamplerOptions,
    SelectState,
    commit_rows,
    most_confident_first,
)
from dlm_edge.runtime.scores import Scores


class Options(SamplerOptions, frozen=True):
    gamma: Annotated[float, msgspec.Meta(ge=0.0, le=1e6)] = 0.1  # nats
    rule: Literal["sum", "each"] = "sum"  # what gamma bounds: the sum of the entropies before a slot's, or its own


def select(scores: Scores, state: SelectState, options: Options) -> Commits:
    order = most_confident_first(scores, -scores.entropy)
    entropy = scores.entropy[order]
    bounded = entropy if options.rule == "each" else np.concatenate([[0.0], np.cumsum(entropy[:-1])])
    return commit_rows(scores, order[: max(int((bounded <= options.gamma).sum()), 1)])


SAMPLER = Sampler(name="eb", select=select, options=Options)
