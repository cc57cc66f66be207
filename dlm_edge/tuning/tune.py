"""`tune`: the sampler that a bundle uses by default, measured on this machine."""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from dlm_edge import __version__, files
from dlm_edge.artifacts import resolve_bundle
from dlm_edge.bundle import Manifest
from dlm_edge.bundle_update import update_manifest
from dlm_edge.errors import UsageProblem
from dlm_edge.evaluation.evaluate import read_tokenizer
from dlm_edge.inspection import check_place
from dlm_edge.machine import processor
from dlm_edge.runtime import Engine
from dlm_edge.runtime.samplers import SAMPLERS
from dlm_edge.runtime.settings import OF_THE_SAMPLER
from dlm_edge.tuning.front import fastest
from dlm_edge.tuning.grid import LEFT_OUT, Candidate, candidates, is_general
from dlm_edge.tuning.plot import speed_plot
from dlm_edge.tuning.prompts import read_questions, task_questions
from dlm_edge.tuning.record import KEY, TuneRecord
from dlm_edge.tuning.report import TuneReport, TuneRow, refused, row_of
from dlm_edge.tuning.sweep import Sweep

PLOT_NAME = "tune.svg"  # in the bundle
SPECIAL = "a default has to go with structured output and sparse attention; name the sampler to have it chosen"
TASK_SAMPLES = 8  # of each task: 48 prompts, about 350 tokens


def tune(
    artefact: str | Path,
    *,
    agreement: float = 0.98,
    samplers: Sequence[str] = (),
    prompts: str | Path | None = None,
    samples: int | None = None,
    max_new_tokens: int | None = None,
    repeats: int = 3,
    seed: int = 0,
    threads: int | None = None,
    plot: str | Path | None = None,
    dry_run: bool = False,
    progress: Callable[[str], None] | None = None,
) -> TuneReport:
    """Measure samplers and their settings, and make the fastest that holds `agreement` the bundle's default.

    Agreement is with `static`, one token per step, at temperature 0 (tuning/agreement.py defines it); speed is text per
    second of wall time on this machine, in which settings closer than 5 % are decided by their forward passes.
    `prompts`: a file, of which the first `samples` (all) are used, or our seeded tasks, `samples` (8) of each.
    `samplers`: only these. `max_new_tokens` is for prompts of a file.
    Unless `dry_run`, the manifest's sampler_defaults and measured["tune"] are written, and the plot tune.svg beside;
    `plot` names another place for it. An interrupted run leaves the bundle as it was.

    Raises E-PARAM, E-PROMPT, E-FILE, E-BUSY, E-IO, and what opening a bundle raises.
    """
    began, say = time.perf_counter(), progress or (lambda _: None)
    check_arguments(agreement, prompts, max_new_tokens, plot)
    tried, asked = candidates(samplers), [] if prompts is None else read_questions(Path(prompts), max_new_tokens)
    left_out = {} if samplers else {name: why for name, why in LEFT_OUT.items() if name in SAMPLERS}
    for name, why in left_out.items():
        say(f"left out: {name}: {why}")
    bundle = resolve_bundle(artefact, say=say)
    questions = asked[:samples] or task_questions(read_tokenizer(bundle), samples or TASK_SAMPLES, seed)
    with Engine.open(bundle, threads=threads) as engine:
        engine.parts = replace(engine.parts, sampler_defaults=without_sampler(engine.parts.sampler_defaults))
        sweep = Sweep(engine, questions, tried, target=agreement, repeats=repeats, seed=seed, say=say)
        trials = sweep.run()
    rows = judged([row_of(trial, trials[0]) for trial in trials], agreement, samplers)
    chosen = next(trial for trial, row in zip(trials, rows, strict=True) if row.verdict == "chosen")
    report = TuneReport(
        chosen=chosen.candidate.settings,
        rows=rows + [refused(Candidate(name), why) for name, why in left_out.items()],
        agreement=agreement,
        prompts=len(questions),
        source="tasks" if prompts is None else Path(prompts).name,
        repeats=repeats,
        seed=seed,
        seconds=time.perf_counter() - began,
        machine={"processor": processor(), "system": platform.platform(), "threads": threads},
        versions=versions(),
        bundle=str(bundle),
        written=not dry_run,
        plot=str(plot) if plot is not None else None if dry_run else str(bundle / PLOT_NAME),
    )
    write(report, bundle, None if plot is None else Path(plot))
    return report


def check_arguments(
    agreement: float, prompts: str | Path | None, max_new_tokens: int | None, plot: str | Path | None
) -> None:
    """Before minutes of work, not after them."""
    if not 0 <= agreement <= 1:
        raise UsageProblem("E-PARAM", f"agreement is {agreement}", "choose 0 to 1")
    if prompts is None and max_new_tokens is not None:
        message = "max_new_tokens is for prompts of a file; the tasks know how long their answers are"
        raise UsageProblem("E-USAGE", message, "drop it, or give --prompts")
    if plot is not None:
        check_place(Path(plot))


def judged(rows: Sequence[TuneRow], agreement: float, named: Sequence[str]) -> list[TuneRow]:
    """The rows with the one to use marked as chosen, and those that only a caller who names them gets as special.

    `static`, the first row, agrees with itself, so there always is one to choose.
    """
    found = [
        msgspec.structs.replace(row, verdict="special", why=SPECIAL)
        if row.verdict == "holds" and row.sampler not in named and not is_general(row.sampler)
        else row
        for row in rows
    ]
    best = fastest([row for row in found if row.verdict == "holds"], min(agreement, rows[0].agreement))
    found[found.index(best)] = msgspec.structs.replace(best, verdict="chosen")
    return found


def without_sampler(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A setting that was chosen before must not be part of what is measured now."""
    return {name: value for name, value in defaults.items() if name not in ("sampler", *OF_THE_SAMPLER)}


def versions() -> dict[str, str]:
    import onnxruntime

    return {"dlm-edge": __version__, "onnxruntime": onnxruntime.__version__, "python": platform.python_version()}


def write(report: TuneReport, bundle: Path, plot: Path | None) -> None:
    """All that a run leaves behind, at its end."""
    drawn = speed_plot(report)
    if plot is not None:
        files.write_file(plot, drawn)
    if not report.written:
        return

    def change(manifest: Manifest) -> Manifest:
        return msgspec.structs.replace(
            manifest,
            sampler_defaults=without_sampler(manifest.sampler_defaults) | report.chosen,
            measured=manifest.measured | {KEY: msgspec.to_builtins(record_of(report))},
        )

    update_manifest(bundle, change, {} if plot is not None else {PLOT_NAME: drawn.encode()})


def record_of(report: TuneReport) -> TuneRecord:
    best = report.best
    return TuneRecord(
        setting=best.label,
        agreement_asked=report.agreement,
        agreement=best.agreement,
        agreement_se=best.agreement_se,
        identical=best.identical,
        exact_match=best.exact_match,
        exact_match_static=report.rows[0].exact_match,
        speed_ratio=best.speed_ratio,
        steps_per_token=best.steps_per_token,
        prompts=report.prompts,
        source=report.source,
        seed=report.seed,
        machine=report.machine,
        versions=report.versions,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
