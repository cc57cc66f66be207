"""Commit-flip rate: in how many denoising steps another artefact would have committed something else.

The reference model decodes; every state it passes through is shown to the other model, which sees the same
canvas and is asked what it would commit there. So one early difference does not count again in every later step.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.runtime.decode_settings import DecodeSettings
from dlm_edge.runtime.denoise import Progress, denoise, lay_out
from dlm_edge.runtime.samplers import Commits, Needs, Sampler, SamplerOptions, SelectState
from dlm_edge.runtime.scores import ScoreReducer, Scores
from dlm_edge.runtime.step_model import FULL_ATTENTION, StepModel


@dataclass(frozen=True, slots=True)
class Step:
    """One selection: the canvas it was made on, the positions it could choose from, and what it chose."""

    ids: NDArray[np.int64]
    block_end: int
    positions: NDArray[np.int64]
    state: SelectState
    commits: Commits


def record_steps(
    model: StepModel, spec: ModelSpec, prompt_ids: Sequence[int], settings: DecodeSettings, sampler: Sampler[Any]
) -> list[Step]:
    """Decode `prompt_ids` with `model` and keep every state on the way."""
    _, canvas = lay_out(spec.conventions, prompt_ids, settings)
    canvases = [canvas.ids.copy()]
    ends: list[int] = []
    chosen: dict[int, tuple[NDArray[np.int64], SelectState, Commits]] = {}

    def select(scores: Scores, state: SelectState, options: SamplerOptions) -> Commits:
        commits = sampler.select(scores, state, options)
        chosen[len(ends)] = (scores.positions, replace(state, canvas=deepcopy(state.canvas)), commits)
        return commits

    def on_step(progress: Progress) -> None:
        canvases.append(progress.canvas.ids.copy())
        ends.append(progress.block_end)

    if sampler.needs != Needs() or sampler.drafts or sampler.border or sampler.texts:
        message = f"steps of the sampler {sampler.name} do not follow from the scores of masked positions alone"
        raise UsageProblem("E-PARAM", message, "compare with static or threshold")
    watched = replace(sampler, select=select)
    denoise(model, spec.conventions, prompt_ids, settings, watched, on_step)
    return [Step(canvases[i], ends[i], *chosen[i]) for i in chosen]  # not those that no sampler decided


def count_flips(
    model: StepModel, spec: ModelSpec, steps: Sequence[Step], sampler: Sampler[Any], settings: DecodeSettings
) -> int:
    """How many of `steps` the other `model` would have decided differently, in position or in token."""
    reducer = ScoreReducer(spec.conventions.mask_id, settings.sampling)
    flips = 0
    for number, step in enumerate(steps):
        is_full = spec.conventions.attention == "full"
        end = len(step.ids) if is_full else step.block_end
        rows = step.positions - spec.conventions.logit_shift
        model.reset(end)
        block = FULL_ATTENTION if is_full else spec.conventions.block_length
        logits = model.run(step.ids[:end], 0, 0, block, rows)
        scores = reducer.reduce(list(logits), step.positions, number)
        commits = sampler.select(scores, step.state, settings.options)
        same = np.array_equal(commits.positions, step.commits.positions)
        flips += not (same and np.array_equal(commits.ids, step.commits.ids))
    return flips
