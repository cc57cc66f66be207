"""Early commit of the whole answer (Prophet, Li et al. 2025, arXiv 2508.19982).

As `static`, until the model is sure of an answer region: when the mean gap between the best two logits over its masked
slots reaches a bar, which falls with progress, everything that is masked is committed at once. The gap is
log(p1 / p2), the same number as the difference of the two logits. By default the region is all slots that remain, up
to the first whose best guess is the end of the text: what follows is sure of being empty, and would hide an answer that
is not sure in the mean. The paper has a region of given length.

Scores are of what the cache's window reaches: the whole text with the caches none and prefix of full attention, so that
the event ends the decode and there is one at most; the block with the dual cache and in block-causal families, where
the event completes the block and later ones are judged by themselves. A region out of reach, or filled, brings no event.

The bars are in units of logits: quantized weights move them. Every step scores all slots in reach.

Limit: bars above every gap (MAX_GAP) are `static`, with the same `steps`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from dlm_edge.runtime.samplers.contract import (
    Commits,
    Count,
    Needs,
    Sampler,
    SamplerOptions,
    SelectState,
    Steps,
    commit_rows,
    most_confident_first,
)
from dlm_edge.runtime.scores import Scores

Gap = Annotated[float, msgspec.Meta(ge=0.0, le=1e6)]  # no gap exceeds MAX_GAP: above it there is no event
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)  # probabilities come from float32
MAX_GAP = -float(np.log(SMALLEST))  # 103.3


class Options(SamplerOptions, frozen=True):
    gap_early: Gap = 7.5  # the bar while less than a third of the request is filled
    gap_middle: Gap = 5.0  # less than two thirds
    gap_late: Gap = 2.5
    region_start: Count = 0  # of the answer region, after the prompt
    region_length: Steps | None = None  # None: to the end of the text, as it is predicted
    steps: Steps | None = None  # of the whole request without an event; None: one token per step


def select(scores: Scores, state: SelectState, options: Options) -> Commits:
    inside = in_region(scores, state, options)
    if inside.any() and gaps(scores)[inside].mean() >= bar(state.progress, options):
        return commit_rows(scores, np.arange(len(scores.positions)))
    start, end = state.span
    order = most_confident_first(scores)
    in_span = (scores.positions[order] >= start) & (scores.positions[order] < end)
    return commit_rows(scores, order[in_span][: state.quota])


def gaps(scores: Scores) -> NDArray[np.float64]:
    """[R] log(p1 / p2), at most MAX_GAP."""
    return np.log(scores.top1_prob) - np.log(np.maximum(scores.top2_prob, SMALLEST))


def bar(progress: float, options: Options) -> float:
    if progress < 1 / 3:
        return options.gap_early
    return options.gap_middle if progress < 2 / 3 else options.gap_late


def in_region(scores: Scores, state: SelectState, options: Options) -> NDArray[np.bool_]:
    """[R] the rounding of the canvas beyond the last token belongs to no region."""
    first, last = state.canvas.prompt_len + options.region_start, state.canvas.prompt_len + state.canvas.gen_len
    if options.region_length is not None:
        last = min(last, first + options.region_length)
    else:
        ends = scores.positions[np.isin(scores.ids, state.stop_ids) & (scores.positions >= first)]
        last = min([last, *(ends[:1] + 1).tolist()])
    return (scores.positions >= first) & (scores.positions < last)


SAMPLER = Sampler(name="prophet", select=select, options=Options, needs=Needs(needs_whole_text=True))
