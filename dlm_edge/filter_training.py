"""`train-filter`: the filter of the sampler learn2pd, trained for one bundle from what `static` does on a few prompts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dlm_edge.artifacts import resolve_bundle
from dlm_edge.bundle import FILTER_NAME, Manifest
from dlm_edge.bundle_update import update_manifest
from dlm_edge.errors import UsageProblem
from dlm_edge.evaluation.evaluate import read_tokenizer
from dlm_edge.filter_fitting import EPOCHS, fit, measure
from dlm_edge.filter_traces import Traces, record_traces, training_text
from dlm_edge.runtime import Engine
from dlm_edge.runtime.filter_file import filter_bytes
from dlm_edge.runtime.samplers import learn2pd
from dlm_edge.tuning.prompts import read_questions, task_questions

KEY = "filter"  # in the manifest's `measured`
TASK_SAMPLES = 40  # of each task, and twice as many pieces of text: about 7,500 steps of the reference models
TASK_SEEDS = 1 << 32  # of samples that `eval` and `tune` do not ask about
MIN_PROMPTS = 10
HELD_OUT = 10  # one prompt in so many
NEW_TOKENS = 64  # for prompts of a file


class FilterReport(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of `dlm-edge train-filter --json`. Shares are of predictions for masked slots; see FilterQuality."""

    bundle: str
    source: str
    prompts: int
    steps: int
    parameters: int
    block_length: int
    tau: float
    trained: dict[str, Any]
    held_out: dict[str, Any]
    epochs: int
    seed: int
    decoding_seconds: float
    training_seconds: float


def train_filter(
    artefact: str | Path,
    *,
    prompts: str | Path | None = None,
    samples: int | None = None,
    max_new_tokens: int | None = None,
    epochs: int = EPOCHS,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> FilterReport:
    """Decode with `static`, learn which predictions were final, and write the filter into the bundle.

    `prompts`: a file, of which the first `samples` (all) are used and continued by `max_new_tokens` (64); or `samples`
    (40) of each of our seeded tasks, and pieces of the text that the reference models were trained on. One prompt in ten is
    held out. An interrupted run leaves the bundle as it was; the same prompts and seed make the same filter.

    Raises E-USAGE, E-PROMPT, E-FILE, E-BUSY, E-IO, and what opening a bundle and decoding raise.
    """
    say = progress or (lambda _: None)
    if prompts is None and max_new_tokens is not None:
        message = "max_new_tokens is for prompts of a file; the tasks know how long their answers are"
        raise UsageProblem("E-USAGE", message, "drop it, or give --prompts")
    asked = [] if prompts is None else read_questions(Path(prompts), max_new_tokens or NEW_TOKENS)[:samples]
    if prompts is not None and len(asked) < MIN_PROMPTS:
        message = f"{len(asked)} prompts are too few to learn from and to hold some out"
        raise UsageProblem("E-PROMPT", message, f"give {MIN_PROMPTS}, or better a hundred")
    bundle = resolve_bundle(artefact, say=say)
    began = time.perf_counter()
    with Engine.open(bundle, threads=threads) as engine:
        count = samples or TASK_SAMPLES
        text = [] if asked else training_text(engine, max(2 * count, MIN_PROMPTS), seed)
        questions = asked or task_questions(read_tokenizer(bundle), count, TASK_SEEDS + seed)
        traces = record_traces(engine, questions, raw=text, say=say)
        block_length = engine.spec.conventions.block_length
    decoded = time.perf_counter()
    n_prompts = len(questions) + len(text)
    train, held_out = split(traces, n_prompts, seed)
    found = fit(train, seed=seed, epochs=epochs, say=say)
    tau = learn2pd.Options().tau
    report = FilterReport(
        bundle=str(bundle),
        source="tasks and text" if prompts is None else Path(prompts).name,
        prompts=n_prompts,
        steps=len(traces.confidence),
        parameters=sum(array.size for array in found.arrays.values()),
        block_length=block_length,
        tau=tau,
        trained=asdict(measure(found, train, tau)),
        held_out=asdict(measure(found, held_out, tau)),
        epochs=epochs,
        seed=seed,
        decoding_seconds=decoded - began,
        training_seconds=time.perf_counter() - decoded,
    )
    write(report, bundle, filter_bytes(found))
    return report


def split(traces: Traces, n_prompts: int, seed: int) -> tuple[Traces, Traces]:
    """By prompts: what is learnt from, and one in ten of them. Raises E-PROMPT where one of both has nothing to say."""
    order = np.random.default_rng([seed, 2]).permutation(n_prompts)
    n_held = max(n_prompts // HELD_OUT, 1)
    train, held_out = traces.of_prompts(order[n_held:]), traces.of_prompts(order[:n_held])
    if not train.n_slots or not held_out.n_slots:
        message = "the prompts were answered with an end of text alone, which is nothing to learn from"
        raise UsageProblem("E-PROMPT", message, "give other prompts, or more of them")
    return train, held_out


def write(report: FilterReport, bundle: Path, data: bytes) -> None:
    """All that a run leaves behind, at its end."""
    record = {k: v for k, v in msgspec.to_builtins(report).items() if k != "bundle"}

    def change(manifest: Manifest) -> Manifest:
        return msgspec.structs.replace(manifest, measured=manifest.measured | {KEY: record})

    update_manifest(bundle, change, {FILTER_NAME: data})
