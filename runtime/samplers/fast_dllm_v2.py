"""Sub-blocks inside a block, left to right, each by threshold (Fast-dLLM v2, Wu et al. 2025, arXiv 2509.26328, section 3.3).

Every masked slot of the sub-block whose confidence exceeds the threshold is committed, and the most confident one in
any case. The published default of 1 commits one token per step, which is `static` in the same sub-blocks; their README
recommends 0.9. Their cache inside a block, which keeps what the other sub-blocks looked like when this one began, is
approximate and is not used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from dlm_edge.runtime.samplers.contract import Commits, Sampler, SamplerOptions, SelectState, Threshold, commit_where
from dlm_edge.runtime.scores import Scores


class Options(SamplerOptions, frozen=True):
    threshold: Threshold = 1.0  # confidence above which a token is committed
    sub_block: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)] = 8  # positions; the last one of a block may be shorter


def spans(state: SelectState, options: Options) -> Sequence[tuple[int, int]]:
    start, end = state.block
    return [(at, min(at + options.sub_block, end)) for at in range(start, end, options.sub_block)]


def select(scores: Scores, state: SelectState, options: Options) -> Commits:
    return commit_where(scores, scores.confidence > options.threshold)


SAMPLER = Sampler(name="fast-dllm-v2", select=select, options=Options, spans=spans)
