"""Wide in, narrow out (WINO, Hong et al. 2025, arXiv 2507.18578): commit boldly, and take back what does not hold.

Wide in: masked slots at or above `threshold` are committed, at most min(max(share x masks, min_commit), max_commit)
of them, and the surest one in any case. Narrow out: if that are more than one, generated tokens of the (sub-)block
whose probability given all others is below `threshold_back` turn back into masks, the least likely first, and fewer
than the step before committed.

The published code appends a shadow block of masks, each of which sees all slots but its own. A slot's own token still
reaches its shadow there through what the other slots computed from it. Here every token is hidden by itself, so its
probability is exactly the one given all others; a step that may take something back then computes one more text per
generated token of the (sub-)block, all in one pass where the model takes several texts at once. That is affordable where
reading the weights takes the time, or where blocks are short, and dear otherwise. In a (sub-)block's first step nothing
is taken back, whatever stands in the block.

It ends: with a(t) commits and r(t) <= a(t - 1) - 1 taken back, r(1) = 0, at least a(T) + T - 1 more slots are filled
after step T than at the start. So there are no more steps than masks.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

from dlm_edge.runtime.samplers.contract import (
    NONE,
    Commits,
    Needs,
    Positions,
    Probability,
    Sampler,
    SamplerOptions,
    SelectState,
    Threshold,
    most_confident_first,
)
from dlm_edge.runtime.scores import Scores

Number = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]


class Options(SamplerOptions, frozen=True):
    threshold: Threshold = 0.6  # confidence from which a token is committed
    threshold_back: Threshold = 0.9  # probability below which it is taken back; 0: never
    share: Probability = 0.7  # of the masks, that one step may fill;
    min_commit: Number = 5  # it may always fill so many,
    max_commit: Number = 20  # and never more than so many


def select(scores: Scores, state: SelectState, options: Options) -> Commits:
    """The memory is the number of tokens that the step before committed."""
    most = min(max(int(len(scores.positions) * options.share), options.min_commit), options.max_commit)
    order = most_confident_first(scores)
    n = min(max(int((scores.confidence >= options.threshold).sum()), 1), most)
    rows = np.sort(order[:n])
    before = 0 if state.step == 0 else state.memory
    hidden = taken_back(state, options, before - 1) if n > 1 and before > 1 else NONE
    return Commits(scores.positions[rows], scores.ids[rows], n, hidden)


def taken_back(state: SelectState, options: Options, at_most: int) -> Positions:
    if not options.threshold_back:
        return NONE
    left_out = state.left_out()
    rows = np.flatnonzero(left_out.probability < options.threshold_back)
    order = np.lexsort((left_out.positions[rows], left_out.probability[rows]))
    hidden: Positions = np.sort(left_out.positions[rows[order[:at_most]]])
    return hidden


SAMPLER = Sampler(name="wino", select=select, options=Options, needs=Needs(needs_left_out=True, can_edit=True))
