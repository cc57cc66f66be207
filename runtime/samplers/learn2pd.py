"""A learned filter says which predictions are final already, and the end of text ends the work (Learn2PD and EoTP, arXiv
2509.25188).

The filter sees the confidences of the whole block, so a slot may pass with a confidence that its neighbours make
trustworthy, and a confident one may have to wait; see runtime/learned_filter.py. It is trained for one bundle by
`dlm-edge train-filter`. As soon as a token that ends the text is committed, only positions left of it are filled.

A filter's answer never exceeds 1, so from tau 1 on this is `static` with one token per step, up to the end of text: what
`static` still fills right of it may change what it fills left of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlm_edge.runtime.learned_filter import Filter
from dlm_edge.runtime.samplers.contract import (
    Commits,
    Needs,
    Sampler,
    SamplerOptions,
    SelectState,
    Threshold,
    commit_where,
)
from dlm_edge.runtime.scores import Scores


class Options(SamplerOptions, frozen=True):
    tau: Threshold = 0.96  # the filter's answer above which a token is committed


def select(scores: Scores, state: SelectState, options: Options) -> Commits:
    known: Filter = state.filter
    answers = known.probabilities(block_confidence(scores, state))
    return commit_where(scores, answers[scores.positions - state.block[0]] > options.tau)


def block_confidence(scores: Scores, state: SelectState) -> NDArray[np.float64]:
    """[block_length] what the filter sees: 1 for filled slots, 0 for masked ones without scores."""
    start, end = state.block
    seen = (~state.canvas.is_masked[start:end]).astype(np.float64)
    seen[scores.positions - start] = scores.confidence
    return seen


SAMPLER = Sampler(name="learn2pd", select=select, options=Options, needs=Needs(needs_filter=True, ends_at_stop=True))
