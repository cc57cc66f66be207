"""The passes that are measured, on two models of one bundle: one for wall time, and one that ONNX Runtime profiles.

prefill   a piece of the prompt whose keys are stored; with full attention the refresh of the whole sequence
step      a block of masks at the end of the prompt
one row   the same weights with a window of one row: what an autoregressive model of this size would do for a token

Both models take turns, so that a busy moment of the machine hits both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dlm_edge.families.spec import ModelSpec
from dlm_edge.roofline.timed_model import TimedStepModel
from dlm_edge.roofline.work import Pass
from dlm_edge.runtime.decode_settings import DecodeSettings
from dlm_edge.runtime.layouts import layout_kind
from dlm_edge.runtime.scores import Sampling, ScoreReducer
from dlm_edge.runtime.sequence_memory import NO_IDS
from dlm_edge.runtime.step_model import FULL_ATTENTION

PREFILL, STEP, ONE_ROW = "prefill", "step", "one row"
CHUNK = DecodeSettings(gen_len=1, block_length=1, sub_block_length=1).prefill_chunk
FEWEST_ROUNDS, MOST_ROUNDS = 3, 40


@dataclass(slots=True)
class Timing:
    """Seconds of each round. `wall` of a run on the model that is not profiled; `runs` counts those of the profiled one, whose
    wall time is `profiled`; `store` and `scoring` follow a run where the phase has them."""

    at: Pass
    wall: list[float] = field(default_factory=list)
    store: list[float] = field(default_factory=list)
    scoring: list[float] = field(default_factory=list)
    profiled: list[float] = field(default_factory=list)
    runs: list[int] = field(default_factory=list)


def planned_passes(spec: ModelSpec, layout: str, prompt_tokens: int) -> dict[str, Pass]:
    """Over a prompt of so many tokens, cut to whole blocks and to what the model has room for."""
    block, is_full = spec.conventions.block_length, spec.conventions.attention == "full"
    prefix = max(min(prompt_tokens, spec.max_positions - block) // block * block, 0)
    length, rule = prefix + block, FULL_ATTENTION if is_full else block
    if layout_kind(layout).form == "none":
        return {STEP: Pass(rows=length, logit_rows=block), ONE_ROW: Pass(rows=1, logit_rows=1)}
    found = {}
    if is_full:
        found[PREFILL] = Pass(rows=length, logit_rows=block, stored=length)
    elif prefix:
        rows = min(max(CHUNK // block, 1) * block, prefix)
        start = prefix - rows
        found[PREFILL] = Pass(rows=rows, start=start, cache_len=start, attn_block=rule, stored=rows)
    seen = length if is_full else prefix
    found[STEP] = Pass(rows=block, start=prefix, cache_len=seen, attn_block=rule, logit_rows=block)
    found[ONE_ROW] = Pass(rows=1, start=prefix, cache_len=prefix, attn_block=1, logit_rows=1)
    return found


class PassTimer:
    """Runs passes over one text of random tokens; those of a step are masks."""

    def __init__(self, timed: TimedStepModel, profiled: TimedStepModel, text: NDArray[np.int64]) -> None:
        """`text`: ids, at least as many as the passes reach."""
        self.timed, self.profiled, self.spec, self.ids = timed, profiled, timed.spec, text
        self.scorer = ScoreReducer(self.spec.conventions.mask_id, Sampling())

    def measure(self, passes: dict[str, Pass], budget_s: float) -> dict[str, Timing]:
        """Of each pass a round to warm up, then as many as fit into its part of the budget."""
        for model in (self.timed, self.profiled):
            model.reset(max(at.start + at.rows for at in passes.values()))
        found = {}
        for name, at in passes.items():
            seconds = seconds_of(partial(self.round, name, Timing(at)))
            found[name] = Timing(at)
            for _ in range(int(min(max(budget_s / len(passes) / seconds, FEWEST_ROUNDS), MOST_ROUNDS))):
                self.round(name, found[name])
        return found

    def round(self, name: str, timing: Timing) -> None:
        at = timing.at
        ids = self.ids[at.start : at.start + at.rows].copy()
        if name == STEP:
            ids[-at.logit_rows :] = self.spec.conventions.mask_id
        for model in (self.timed, self.profiled):
            self.fill(model, at.start if name == PREFILL else at.cache_len)
            self.run(model, ids, timing)

    def fill(self, model: TimedStepModel, end: int) -> None:
        """Have positions [0, end) stored; where something is missing, compute it."""
        is_full, block = self.spec.conventions.attention == "full", self.spec.conventions.block_length
        if not end:
            model.keep(NO_IDS, 1)
        elif is_full:
            if model.stored_prefix(self.ids[:end].tolist()) < end:
                model.run(self.ids[:end], 0, 0, FULL_ATTENTION, NO_IDS, stored_rows=end)
                model.store(0, end)
        else:
            for start in range(model.keep(self.ids[:end], block), end, CHUNK):
                stop = min(start + CHUNK, end)
                model.run(self.ids[start:stop], start, start, block, NO_IDS, stored_rows=stop - start)
                model.store(start, stop)

    def run(self, model: TimedStepModel, ids: NDArray[np.int64], timing: Timing) -> None:
        at, wanted = timing.at, np.arange(timing.at.rows - timing.at.logit_rows, timing.at.rows)
        logits = model.run(ids, at.start, at.cache_len, at.attn_block, wanted, stored_rows=at.stored)
        began, ended = model.runs[-1]
        if at.stored:
            model.store(at.start, at.start + at.stored)
        if model is self.profiled:
            timing.profiled.append(ended - began)
            timing.runs.append(len(model.runs) - 1)
            return
        timing.wall.append(ended - began)
        if at.stored:
            timing.store.append(model.stores[-1][1] - model.stores[-1][0])
        if at.logit_rows and not at.stored:
            timing.scoring.append(seconds_of(lambda: self.scorer.reduce(list(logits), at.start + wanted, 0)))


def seconds_of(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
