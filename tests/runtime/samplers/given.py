"""Scores and states for the tests of single selections."""

from __future__ import annotations

import numpy as np

from dlm_edge.runtime.blocks import Canvas
from dlm_edge.runtime.learned_filter import Filter
from dlm_edge.runtime.samplers import SAMPLERS, SelectState
from dlm_edge.runtime.scores import Scores

FIRST = 10  # position of the first row


def scores_of(confidence, ids=None, **columns):
    """Rows at FIRST, FIRST + 1, ...; ids 0, 1, ... unless given; entropy and top-2 are 0 unless given."""
    confidence = np.asarray(confidence, np.float64)
    ids = np.arange(len(confidence)) if ids is None else np.asarray(ids)
    values = {"top1_prob": confidence, "top2_prob": confidence * 0, "entropy": confidence * 0}
    values |= {name: np.asarray(column, np.float64) for name, column in columns.items() if name != "logits"}
    positions = FIRST + np.arange(len(confidence))
    return Scores(positions, ids, confidence, **values, logits=columns.get("logits", ()))


def state_of(n_masked=4, **changes):
    """A (sub-)block of `n_masked` masks at FIRST, one token per step, at its first selection."""
    end = FIRST + n_masked
    values = {
        "step": 0,
        "n_masked": n_masked,
        "n_steps": n_masked,
        "span": (FIRST, end),
        "block": (FIRST, end),
        "canvas": Canvas(range(1, FIRST + 1), n_masked, end, mask_id=99),
    }
    return SelectState(**(values | changes))


def threshold_filter(block_length, at=0.5, sharpness=1000.0):
    """A filter that looks at each slot alone: above 0.5 where its confidence is above `at`."""
    eye = np.eye(block_length, dtype=np.float32)
    bias = np.full(block_length, -sharpness * at, np.float32)
    return Filter(eye, np.zeros(block_length, np.float32), np.float32(sharpness) * eye, bias)


def select(sampler, scores, state=None, **options):
    """The (position, id) pairs that a sampler commits."""
    chosen = SAMPLERS[sampler]
    commits = chosen.select(scores, state or state_of(len(scores.positions)), chosen.options(**options))
    return list(zip(commits.positions.tolist(), commits.ids.tolist(), strict=True))
