"""What the host does beside the model: the loop around the steps of a request, and its text."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import numpy as np

from dlm_edge.families.spec import ModelSpec
from dlm_edge.roofline.passes import seconds_of
from dlm_edge.roofline.timed_model import TimedStepModel
from dlm_edge.runtime import Engine
from dlm_edge.runtime.scores import Sampling, ScoreReducer


class HostTimes(msgspec.Struct, frozen=True, kw_only=True):
    """`between_steps`: host seconds of a step of a whole request, whose steps asked for `logit_rows` rows in the mean;
    `loop`: what is left of them without scoring so many rows, never below zero.
    `tokenize`, `detokenize`: seconds for the prompt, with its chat template where the bundle has one; once a request."""

    between_steps: float
    logit_rows: float
    loop: float
    steps: int
    prompt_tokens: int
    tokenize: float
    detokenize: float


def measure_host(
    engine: Engine, model: TimedStepModel, prompt: Sequence[int], new_tokens: int, settings: Mapping[str, Any]
) -> HostTimes:
    """One request through an engine of its own over `model`, whose session `engine` has opened."""
    codec = engine.parts.codec
    text = codec.decode(prompt)
    with Engine(replace(engine.parts, model=model, more_models=())) as own:
        n_runs, n_stores = len(model.runs), len(model.stores)
        own.generate(list(prompt), max_new_tokens=new_tokens, stop_at_eos=False, **settings)
        ended = time.perf_counter()
        between, rows, steps = outside_of_runs(
            model.runs[n_runs:], model.logit_rows[n_runs:], model.stores[n_stores:], ended
        )
        return HostTimes(
            between_steps=between,
            logit_rows=rows,
            loop=max(between - scoring_seconds(engine.spec, max(round(rows), 1)), 0.0),
            steps=steps,
            prompt_tokens=len(prompt),
            tokenize=seconds_of(lambda: own.encode(text)),
            detokenize=seconds_of(lambda: codec.decode(prompt)),
        )


def scoring_seconds(spec: ModelSpec, rows: int) -> float:
    """Of so many rows of logits: the median of nine times."""
    scorer = ScoreReducer(spec.conventions.mask_id, Sampling())
    logits = np.random.default_rng(0).standard_normal((rows, spec.vocab_size), np.float32)
    reduce = partial(scorer.reduce, list(logits), np.arange(rows), 0)
    return statistics.median(seconds_of(reduce) for _ in range(9))


def outside_of_runs(
    runs: Sequence[tuple[float, float]],
    logit_rows: Sequence[int],
    stores: Sequence[tuple[float, float]],
    ended: float,
) -> tuple[float, float, int]:
    """Seconds between a step's run and whatever is run next, without storing (the median of all steps), the mean rows of
    logits of a step, and the number of steps, which are the runs that give logits."""
    gaps = []
    for i, (_, end) in enumerate(runs):
        until = runs[i + 1][0] if i + 1 < len(runs) else ended
        storing = sum(to - since for since, to in stores if end <= since < until)
        if logit_rows[i]:
            gaps.append(until - end - storing)
    return statistics.median(gaps), sum(logit_rows) / len(gaps), len(gaps)
