"""What the profiles cost in quality on the reference models: the same states and the same questions for every one.

commit flips  steps of the unquantized model, and of the weight-only twin, that would have been committed otherwise
exact match   answers to the same questions, of all short tasks
masked NLL    of the same hidden tokens

Differences are paired, by prompt, by question and by window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dlm_edge
from dlm_edge.artifacts import resolve_bundle
from dlm_edge.decoding import decoding_settings
from dlm_edge.evaluation.evaluate import answer_length, read_tokenizer, score_text
from dlm_edge.evaluation.tasks import SHORT_TASKS, make_samples
from dlm_edge.runtime import Engine

from . import profile_flips
from .rows import Row, Rows

SECTION = "quality"
MODELS = ("reference", "reference-full")
WINDOWS, TASK_SEED = 40, 2
FLOAT = "fp32"


@dataclass(frozen=True, slots=True)
class Weights:
    """How a checkpoint is quantized, and the profiles it is exported with; `twin` rounds no activations."""

    name: str
    settings: dict[str, Any]
    profiles: tuple[str, ...]
    twin: str


WEIGHTS = (
    Weights("gptq4", {"recipe": "w4", "method": "gptq"}, ("w4", "w4a8-blocks", "w4a8", FLOAT), "w4"),
    Weights("rtn8", {"method": "rtn", "bits": 8, "group_size": 64}, ("w8", "w8a8", "w8a8-qlinear"), "w8"),
    Weights("w8a8", {"recipe": "w8a8"}, ("w8", "w8a8", "w8a8-qlinear"), "w8"),
)


@dataclass(frozen=True, slots=True)
class Questions:
    samples: int  # of each task
    flip_prompts: int


def run(rows: Rows, folder: Path, questions: Questions, say: Callable[[str], None]) -> None:
    for model in MODELS:
        source = resolve_bundle(model)
        measure_once(rows, f"{model}/{FLOAT}", source, {}, questions, say)
        for weights in WEIGHTS:
            packed = folder / f"{model}-{weights.name}"
            if not packed.exists():
                say(f"{SECTION}: quantizing {model} to {weights.name}")
                dlm_edge.quantize(model, packed, restart=True, **weights.settings)
            references = {"source": source, "twin": exported(packed, weights.twin, say)}
            for profile in weights.profiles:
                bundle = exported(packed, profile, say)
                measure_once(rows, f"{model}/{weights.name}/{profile}", bundle, references, questions, say)


def exported(packed: Path, profile: str, say: Callable[[str], None]) -> Path:
    bundle = packed.with_name(f"{packed.name}-{profile}-bundle")
    if not bundle.exists():
        say(f"{SECTION}: exporting {bundle.name}")
        dlm_edge.export(packed, bundle, profile=profile)
    return bundle


def measure_once(
    rows: Rows, key: str, bundle: Path, references: dict[str, Path], questions: Questions, say: Callable[[str], None]
) -> None:
    if key not in rows.section(SECTION):
        say(f"{SECTION}: {key}")
        row: Row = {"samples_of_task": questions.samples, "windows": WINDOWS}
        nll, _ = score_text(bundle, WINDOWS, 0, 1)
        row["masked_nll"] = [round(float(x), 6) for x in nll.bound]
        rows.add(SECTION, key, row | {"right": answers(bundle, questions.samples)})
    if references and key not in rows.section(profile_flips.SECTION):
        say(f"{profile_flips.SECTION}: {key}")
        rows.add(profile_flips.SECTION, key, profile_flips.measure(bundle, references, questions.flip_prompts))


def answers(bundle: Path, samples: int) -> dict[str, str]:
    """A 1 or a 0 for each question of a task."""
    tokenizer, decoding = read_tokenizer(bundle), decoding_settings("threshold", {})
    found = {}
    with Engine.open(bundle, threads=1) as engine:
        for task in SHORT_TASKS:
            right = ""
            for sample in make_samples(task, samples, TASK_SEED):
                result = engine.generate(sample.prompt, max_new_tokens=answer_length(tokenizer, sample), **decoding)
                right += str(int(sample.is_correct(result.text)))
            found[task] = right
    return found


def is_right(row: Row) -> NDArray[np.float64]:
    """[questions], of all tasks."""
    return np.array([int(c) for answered in row["right"].values() for c in answered], np.float64)


def paired(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[float, float]:
    """The mean difference and its standard error."""
    difference = ours - theirs
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))
