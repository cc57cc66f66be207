"""Divide and conquer over the masked runs (dInfer, Ma et al. 2025, arXiv 2510.08666).

Committed tokens cut a block into runs of masked slots. Each run commits its most confident slot where that reaches
the lower threshold, and all slots commit that reach the threshold. So commits are spread out, and neighbours, which
depend on each other most, are rarely committed together. At least the most confident slot is committed.

Both comparisons hold with equality, as in `threshold`; the reference demands more than the lower one. It takes one
sequence at a time only, which makes no difference here.

Limits: a lower threshold above 1 is `threshold`; both above 1 are `static`.
"""

from __future__ import annotations

import numpy as np

from dlm_edge.runtime.samplers.contract import (
    Commits,
    Sampler,
    SamplerOptions,
    SelectState,
    Threshold,
    commit_where,
    most_confident_first,
)
from dlm_edge.runtime.scores import Scores


class Options(SamplerOptions, frozen=True):
    threshold: Threshold = 0.9  # confidence from which any slot is committed
    low: Threshold = 0.4  # confidence from which the best slot of a run is committed


def select(scores: Scores, state: SelectState, options: Options) -> Commits:
    is_sure = scores.confidence >= options.threshold
    run = np.cumsum(np.diff(scores.positions, prepend=scores.positions[0]) > 1)  # [R] number of each row's run
    order = most_confident_first(scores)
    best = order[np.unique(run[order], return_index=True)[1]]  # the first row of each run
    is_sure[best] |= scores.confidence[best] >= options.low
    return commit_where(scores, is_sure)


SAMPLER = Sampler(name="hierarchical", select=select, options=Options)
