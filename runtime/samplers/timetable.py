"""How many masks turn into tokens at each planned step, as Dream has it (Ye et al. 2025, arXiv 2508.15487, and its code).

Over N steps the time falls evenly from 1 to eps; of the masks at time t, the share 1 - s / t is a token at the next
time s, and at the last step every one of them. Steps that transfer nothing change nothing, so they are passed over
without asking the model again. `maskgit_plus`, `topk_margin` and `entropy` differ in which slots are the surest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from dlm_edge.runtime.samplers.contract import (
    Commits,
    Probability,
    Sampler,
    SamplerOptions,
    SelectState,
    Steps,
    commit_rows,
    most_confident_first,
)
from dlm_edge.runtime.scores import Scores

Measure = NDArray[np.float64]  # [R], higher is surer
SMALLEST = 1e-300  # in place of a random number of 0, which has no logarithm


class RankedOptions(SamplerOptions, frozen=True):
    steps: Steps | None = None  # of the whole request, by the timetable; None: one token per step
    eps: Probability = 1e-3  # time at the end
    alg_temp: Annotated[float, msgspec.Meta(ge=0.0, le=1e6)] = 0.0  # above 0: slots are drawn by softmax(how sure / it)


def share(step: int, n_steps: int, eps: float) -> float:
    """Of the masks that are left, at step 0 .. n_steps - 1."""
    if step >= n_steps - 1:
        return 1.0
    now, following = (1 - (1 - eps) * i / n_steps for i in (step, step + 1))
    return 1 - following / now


def first_step(state: SelectState) -> int:
    """Of the timetable, from which on nothing is done yet; selections leave the next one in their memory."""
    return 0 if state.step == 0 else int(state.memory)


def next_transfer(n_masked: int, step: int, n_steps: int, eps: float) -> tuple[int, int]:
    """The first step from `step` on that transfers anything, and how many of the `n_masked` masks."""
    while (n := int(n_masked * share(step, n_steps, eps))) == 0:
        step += 1
    return step, n


def in_drawn_order(scores: Scores, measure: Measure, temperature: float, state: SelectState) -> NDArray[np.int64]:
    """Rows as softmax(measure / temperature) draws them without replacement: by falling sum with Gumbel noise."""
    numbers = np.array([state.uniform(int(position)) for position in scores.positions])
    noise = -np.log(-np.log(np.maximum(numbers, SMALLEST)))
    return most_confident_first(scores, measure / temperature + noise)


def ranked_sampler(name: str, measure: Callable[[Scores], Measure]) -> Sampler[RankedOptions]:
    """The sampler that commits the slots with the highest measure, as many as the timetable says."""

    def select(scores: Scores, state: SelectState, options: RankedOptions) -> Commits:
        step, n = first_step(state), 1
        if options.steps is not None:
            step, n = next_transfer(len(scores.positions), step, state.n_steps, options.eps)
        if options.alg_temp:
            order = in_drawn_order(scores, measure(scores), options.alg_temp, state)
        else:
            order = most_confident_first(scores, measure(scores))
        return commit_rows(scores, order[:n], memory=step + 1)

    return Sampler(name=name, select=select, options=RankedOptions)
