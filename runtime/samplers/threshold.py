"""Parallel decoding by confidence (Fast-dLLM, Wu et al. 2025, arXiv 2505.22618, section 3.3).

Every masked slot of the (sub-)block whose confidence reaches the threshold is committed, and the most
confident one in any case. No confidence exceeds 1, so a threshold above 1 is `static` with one token per step.
"""

from __future__ import annotations

import numpy as np

from dlm_edge.runtime.samplers.contract import Commits, Needs, Sampler, SelectState, commit_rows, most_confident_first
from dlm_edge.runtime.scores import Scores


def select(scores: Scores, state: SelectState) -> Commits:
    sure = np.flatnonzero(scores.confidence >= state.threshold)
    return commit_rows(scores, sure if sure.size else most_confident_first(scores)[:1])


SAMPLER = Sampler("threshold", select, Needs(), options=("threshold",))
