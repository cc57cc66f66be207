"""Parallel decoding by confidence (Fast-dLLM, Wu et al. 2025, arXiv 2505.22618, section 3.3).

Every masked slot of the (sub-)block whose confidence reaches the threshold is committed, and the most
confident one in any case. No confidence exceeds 1, so a threshold above 1 is `static` with one token per step.
"""

from __future__ import annotations

from dlm_edge.runtime.samplers.contract import Commits, Sampler, SamplerOptions, SelectState, Threshold, commit_where
from dlm_edge.runtime.scores import Scores


class Options(SamplerOptions, frozen=True):
    threshold: Threshold = 0.9  # confidence from which a token is committed


def select(scores: Scores, state: SelectState, options: Options) -> Commits:
    return commit_where(scores, scores.confidence >= options.threshold)


SAMPLER = Sampler(name="threshold", select=select, options=Options)
