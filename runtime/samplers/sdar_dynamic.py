"""A threshold with a floor under it (SDAR, Cheng et al. 2025, arXiv 2510.06303; TraDo, LMDeploy and JetEngine as well).

Every slot above the threshold is committed; where those are fewer than the step's quota, the most confident ones are,
as many as the quota. Two departures from the published code: the confidence is that of the whole distribution, where
theirs is taken after top-k and top-p, which raise it; and the quota shares the masks that remain among the steps that
remain, where theirs is fixed when the block begins and so counts masks that earlier steps have filled already. With a
threshold of 1 or more it is `static` with the same steps.
"""

from __future__ import annotations

from dlm_edge.runtime.samplers.contract import (
    Commits,
    Sampler,
    SamplerOptions,
    SelectState,
    Steps,
    Threshold,
    commit_rows,
    most_confident_first,
)
from dlm_edge.runtime.scores import Scores


class Options(SamplerOptions, frozen=True):
    threshold: Threshold = 0.85  # confidence above which a token is committed; TraDo's is 0.9
    steps: Steps | None = None  # at most so many in the whole request; None: a quota of one token per step


def select(scores: Scores, state: SelectState, options: Options) -> Commits:
    quota = -(-len(scores.positions) // (state.n_steps - state.step))
    n_sure = int((scores.confidence > options.threshold).sum())
    return commit_rows(scores, most_confident_first(scores)[: max(n_sure, quota)])


SAMPLER = Sampler(name="sdar-dynamic", select=select, options=Options)
