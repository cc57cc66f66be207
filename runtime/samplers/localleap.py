"""Relaxed acceptance around anchors (LocalLeap, Kong et al. 2025, arXiv 2510.07081).

A slot whose confidence reaches the threshold is an anchor. Slots up to `radius` positions from an anchor need only the
relaxed threshold, for what stands next to a token that is sure tends to be settled too. Anchors are slots of this
selection; tokens committed earlier have had their turn. Without an anchor the most confident slot is committed. The
paper fills what follows an end of text with its id; here decoding ends after that block.

Limits: radius 0, or a relaxed threshold that is not below the other, is `threshold`; above 1 both are `static`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlm_edge.runtime.samplers.contract import (
    Commits,
    Count,
    Positions,
    Sampler,
    SamplerOptions,
    SelectState,
    Threshold,
    commit_where,
)
from dlm_edge.runtime.scores import Scores

FAR = 1 << 40  # farther than any two positions


class Options(SamplerOptions, frozen=True):
    threshold: Threshold = 0.9  # confidence from which a slot is an anchor
    relaxed: Threshold = 0.75  # confidence from which a slot near an anchor is committed
    radius: Count = 4  # positions to either side of an anchor


def select(scores: Scores, state: SelectState, options: Options) -> Commits:
    is_anchor = scores.confidence >= options.threshold
    is_near = distance_to_nearest(scores.positions, scores.positions[is_anchor]) <= options.radius
    return commit_where(scores, is_anchor | (is_near & (scores.confidence >= options.relaxed)))


def distance_to_nearest(positions: Positions, anchors: Positions) -> NDArray[np.int64]:
    """[n] for ascending anchors; FAR or more where there is none."""
    fenced = np.concatenate([[-FAR], anchors, [2 * FAR]])
    right = np.searchsorted(fenced, positions)
    distance: NDArray[np.int64] = np.minimum(fenced[right] - positions, positions - fenced[right - 1])
    return distance


SAMPLER = Sampler(name="localleap", select=select, options=Options)
