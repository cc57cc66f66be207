"""Slots at random, at the rate of the diffusion's own reverse process (Dream, Ye et al. 2025, arXiv 2508.15487).

At each step of the timetable every mask turns into a token with the probability 1 - s / t, whatever the model is sure
of, and at the last step all do. Steps at which none does are passed over without asking the model again. The draws
depend on the seed, also at temperature 0.
"""

from __future__ import annotations

import numpy as np

from dlm_edge.runtime.samplers.contract import (
    Commits,
    Probability,
    Sampler,
    SamplerOptions,
    SelectState,
    Steps,
    commit_rows,
)
from dlm_edge.runtime.samplers.timetable import first_step, share
from dlm_edge.runtime.scores import Scores


class Options(SamplerOptions, frozen=True):
    steps: Steps | None = None  # at most so many in the whole request; None: as many as there are masks
    eps: Probability = 1e-3  # time at the end


def select(scores: Scores, state: SelectState, options: Options) -> Commits:
    step = first_step(state)
    while True:
        rate = share(step, state.n_steps, options.eps)
        numbers = [state.uniform(int(position), 1 + step) for position in scores.positions]
        rows, step = np.flatnonzero(np.array(numbers) < rate), step + 1
        if rows.size:
            return commit_rows(scores, rows, memory=step)


SAMPLER = Sampler(name="origin", select=select, options=Options)
