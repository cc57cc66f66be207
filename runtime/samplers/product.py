"""As many as are all right together with a stated probability (Nemotron-Labs-Diffusion, rule "cumulative error").

By falling confidence, the longest run of slots whose confidences multiply to at least the threshold is committed, and
the most confident slot in any case: if the model were calibrated and the slots independent, that is the probability
that none of them is wrong. No product exceeds 1, so a threshold above 1 is `static` with one token per step.
"""

from __future__ import annotations

import numpy as np

from dlm_edge.runtime.samplers.contract import (
    Commits,
    Sampler,
    SamplerOptions,
    SelectState,
    Threshold,
    commit_rows,
    most_confident_first,
)
from dlm_edge.runtime.scores import Scores


class Options(SamplerOptions, frozen=True):
    threshold: Threshold = 0.9  # probability that all tokens of a step are right


def select(scores: Scores, state: SelectState, options: Options) -> Commits:
    order = most_confident_first(scores)
    together = np.cumprod(scores.confidence[order])
    return commit_rows(scores, order[: max(int((together >= options.threshold).sum()), 1)])


SAMPLER = Sampler(name="product", select=select, options=Options)
