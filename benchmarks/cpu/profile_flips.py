"""Commit flips of the profiles: the same states for every one, those that a reference model passed through.

A reference decodes prompts of all short tasks, and each of its states is shown to a bundle, which is asked what it would
commit there (dlm_edge/evaluation/commit_flips.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlm_edge.evaluation.commit_flips import Step, count_flips, record_steps
from dlm_edge.evaluation.evaluate import answer_length, read_tokenizer
from dlm_edge.evaluation.tasks import SHORT_TASKS, Sample, make_samples
from dlm_edge.runtime import Engine
from dlm_edge.runtime.decode_settings import DecodeSettings
from dlm_edge.runtime.sampler_options import sampler_options
from dlm_edge.runtime.samplers import SAMPLERS

from .rows import Row

SECTION = "flips"
SEED = 1
SAMPLER = SAMPLERS["threshold"]


def measure(bundle: Path, references: Mapping[str, Path], prompts: int) -> Row:
    """By reference, for each prompt: steps that `bundle` would have decided differently, of how many: "0/5 1/7"."""
    return {name: " ".join(flips(bundle, recorded(path, prompts))) for name, path in references.items()}


@cache
def recorded(reference: Path, prompts: int) -> list[list[Step]]:
    """The states that it passes through, prompt by prompt."""
    tokenizer = read_tokenizer(reference)
    with Engine.open(reference, threads=1) as engine:
        found = []
        for sample in samples_of(prompts):
            chosen = settings(engine, answer_length(tokenizer, sample))
            prompt = engine.encode(sample.prompt)
            found.append(record_steps(engine.parts.model, engine.spec, prompt, chosen, SAMPLER))
    return found


def flips(bundle: Path, states: Sequence[Sequence[Step]]) -> list[str]:
    with Engine.open(bundle, threads=1) as engine:
        chosen, model = settings(engine, 1), engine.parts.model
        return [f"{count_flips(model, engine.spec, steps, SAMPLER, chosen)}/{len(steps)}" for steps in states]


def samples_of(prompts: int) -> list[Sample]:
    """Of all short tasks in turn."""
    tasks = list(SHORT_TASKS)
    each = {task: make_samples(task, -(-prompts // len(tasks)), SEED) for task in tasks}
    return [each[tasks[i % len(tasks)]][i // len(tasks)] for i in range(prompts)]


def settings(engine: Engine, gen_len: int) -> DecodeSettings:
    conventions = engine.spec.conventions
    return DecodeSettings(
        gen_len=gen_len,
        block_length=conventions.block_length,
        sub_block_length=conventions.sub_block_length,
        options=sampler_options(SAMPLER, {}),
        stop_ids=conventions.stop_ids,
    )


def rate(row: Row, against: str) -> tuple[float, NDArray[np.float64]]:
    """Of all steps, and what each prompt adds to it [prompts]."""
    counts = np.array([of.split("/") for of in row[against].split()], np.float64)
    steps = counts[:, 1].sum()
    return float(counts[:, 0].sum() / steps), counts[:, 0] / steps


def more(ours: Row, theirs: Row) -> tuple[float, float]:
    """By how much our rate against the source is higher than theirs, and the standard error, paired by prompt."""
    (mine, by_prompt), (other, their_prompts) = rate(ours, "source"), rate(theirs, "source")
    difference = by_prompt - their_prompts
    return mine - other, float(difference.std(ddof=1) * np.sqrt(len(difference)))
