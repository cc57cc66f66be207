"""`quantize`: a checkpoint folder becomes a quantized one, layer by layer, and can be stopped at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import torch

import dlm_edge
from dlm_edge import files
from dlm_edge.checkpoint import Checkpoint, open_checkpoint
from dlm_edge.errors import JobError, UsageProblem
from dlm_edge.memory import peak_rss_bytes
from dlm_edge.quant.calibration import Calibration, load_calibration
from dlm_edge.quant.job import Job
from dlm_edge.quant.memory_estimate import estimate_ram
from dlm_edge.quant.output_folder import folder_size
from dlm_edge.quant.plan import OUTER_BITS, Plan, QuantizeOptions, make_plan
from dlm_edge.quant.recipes import choose_recipe, state_config
from dlm_edge.quant.report import LayerReport, QuantizeReport
from dlm_edge.quant.report_page import report_page
from dlm_edge.quant.resources import check_resources, finished_bytes
from dlm_edge.quant.time_estimate import estimate_seconds
from dlm_edge.quant.tuning import TuningConfig
from dlm_edge.quantized import LayerRecord
from dlm_edge.work_folder import WorkFolder, check_at_once

SETTINGS_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def quantize(
    model: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    restart: bool = False,
    progress: Callable[[str], None] | None = None,
    **settings: Any,
) -> QuantizeReport:
    """Write the quantized checkpoint `out`; nothing stands under that name before it is complete and audited.

    `settings` are those of `make_options`. Finished layers survive a kill; `resume` continues them to the same bytes
    as an uninterrupted run on this machine with as many threads. `restart` discards an unfinished run and replaces an
    existing output.
    Raises E-QUANT, E-CALIB, E-NAN, E-EXISTS, E-RESUME, E-BUSY, E-CHANGED, E-IO, E-MEM, E-STOPPED, and whatever
    opening the checkpoint raises.
    """
    if resume and restart:
        raise UsageProblem("E-USAGE", "resume and restart exclude each other", "give one of --resume and --restart")
    options = make_options(**settings)
    started, say = time.perf_counter(), progress or (lambda _: None)
    source, out = open_checkpoint(model), Path(out)
    if not resume:  # what a kill may have left there is mended first, under the lock
        check_at_once(out, restart=restart)
    plan = make_plan(source, options)
    check_resources(plan, options, out, finished_bytes=finished_bytes(out) if resume else 0)
    calibrated = calibrate(plan, options) if plan.state_tokens else None
    say(f"reading   {source.name}: {source.spec.family}, {source.spec.n_layers} layers")
    if calibrated:
        say(f"states    {calibrated.summary()}")
        report_warnings(calibrated, say, strict=options.strict)
    say(f"quantize  {describe(options)}: {len(plan.roles)} linear layers")
    with WorkFolder.open(out, fingerprint(source, options, calibrated), resume=resume, restart=restart) as work:
        job = Job(plan, options, calibrated, work, say)
        with torch.inference_mode():
            job.run()
        report = QuantizeReport(
            output=str(out),
            method=options.recipe.method,
            bits_per_weight=8 * job.outcome.packed_bytes() / plan.n_weights,
            size_bytes=0,
            source_size_bytes=folder_size(source.path),
            seconds=time.perf_counter() - started,
            peak_rss_bytes=peak_rss_bytes(),
            layers=job.outcome.reports(),
            fallbacks=job.outcome.fallbacks(),
            quality=job.outcome.quality(),
            rotation=job.outcome.rotation(),
            recipe={"name": options.recipe_name, **msgspec.to_builtins(options.recipe)},
            calibration=calibrated.description() if calibrated else {},
        )
        files.write_file(work.path / "report.html", report_page(source.name, report))
        size = folder_size(work.path)
        work.finish()
    return msgspec.structs.replace(report, size_bytes=size)


def make_options(
    *,
    recipe: str | None = None,
    method: str | None = None,
    bits: float | None = None,
    group_size: int | None = None,
    zero: str | None = None,
    calibration: str | None = None,
    draws: int | None = None,
    quota: str | None = None,
    confidence: bool | None = None,
    rotate: bool | None = None,
    tune: int | None = None,
    options: dict[str, Any] | None = None,
    calib_data: str | Path | None = None,
    calib_tokens: int | None = None,
    seed: int | None = None,
    skip: Iterable[str] = (),
    strict: bool = False,
    allow_nonfinite: bool = False,
    imatrix: bool = False,
) -> QuantizeOptions:
    """The settings of a job. What is None is taken from the recipe, or from the method when there is no recipe.

    `tune`: steps of block tuning after each layer, 0 for none; `options`: further fields of the method's config;
    `draws`, `quota` and `confidence`: fields of StateConfig; `seed`: of the calibration data, their states and the
    rotation, 0 where it is None.
    Raises E-USAGE or E-QUANT for what does not fit together, and E-USAGE for what was given and would be ignored.
    """
    states = {"draws": draws, "quota": quota, "confidence": confidence or None}
    states = {key: value for key, value in states.items() if value is not None}
    chosen = choose_recipe(
        recipe,
        method=method,
        bits=bits,
        group_size=group_size,
        zero=zero,
        calibration=calibration,
        states=states or None,
        rotate=rotate or None,
        options=options,
        tuning=None if not tune else msgspec.to_builtins(TuningConfig(steps=tune)),
    )
    if tune == 0:
        chosen = msgspec.structs.replace(chosen, tuning=None)
    settings = QuantizeOptions(
        recipe=chosen,
        recipe_name=recipe,
        calib_data=None if calib_data is None else Path(calib_data),
        calib_tokens=calib_tokens,
        seed=seed or 0,
        skip=tuple(skip),
        strict=strict,
        allow_nonfinite=allow_nonfinite,
        imatrix=imatrix,
    )
    others = {"calibration": calibration, "seed": seed}
    settings.refuse_unused([*states, *(key for key, value in others.items() if value is not None)])
    return settings


def plan_only(model: str | Path, out: str | Path, **settings: Any) -> QuantizeReport:
    """What `quantize` would do; sizes, memory and seconds are estimates, errors are unknown. Raises as it would."""
    options = make_options(**settings)
    source, recipe = open_checkpoint(model), options.recipe
    plan = make_plan(source, options)
    check_resources(plan, options, Path(out))
    if options.calib_data is not None:
        calibrate(plan, options)
    name_of = source.tensor_name
    planned = [
        LayerRecord(name=name_of(r), bits=OUTER_BITS, group_size=plan.outer_group, method="rtn") for r in plan.outer
    ]
    planned += [
        LayerRecord(name=name_of(r), bits=round(recipe.bits), group_size=recipe.group_size, method=recipe.method)
        for r in plan.roles
    ]
    return QuantizeReport(
        output=str(out),
        method=recipe.method,
        bits_per_weight=plan.bits_per_weight,
        size_bytes=plan.weight_bytes,
        source_size_bytes=folder_size(source.path),
        seconds=estimate_seconds(plan, options),
        peak_rss_bytes=estimate_ram(plan, options),
        layers=[LayerReport.of(record, 0.0) for record in planned],
        fallbacks=[],
        recipe={"name": options.recipe_name, **msgspec.to_builtins(recipe)},
        dry_run=True,
    )


def calibrate(plan: Plan, options: QuantizeOptions) -> Calibration:
    return load_calibration(plan.checkpoint, options, plan.state_tokens, state_config(options.recipe))


def report_warnings(calibrated: Calibration, say: Callable[[str], None], *, strict: bool) -> None:
    if strict and calibrated.warnings:
        raise JobError("E-CALIB", "; ".join(calibrated.warnings), "give more data, or run without --strict")
    for warning in calibrated.warnings:
        say(f"warning   {warning}")


def describe(options: QuantizeOptions) -> str:
    recipe = options.recipe
    groups = f"groups of {recipe.group_size}, {recipe.zero} zeros" if recipe.group_size else "per output channel"
    further = [f"recipe {options.recipe_name}"] if options.recipe_name else []
    further += ["rotated"] if recipe.rotate else []
    further += ["tuned"] if recipe.tuning is not None else []
    return ", ".join([f"{recipe.method}, {recipe.bits:g} bits, {groups}", *further])


def fingerprint(source: Checkpoint, options: QuantizeOptions, calibrated: Calibration | None) -> dict[str, Any]:
    """What has to be the same for a job to be resumed."""
    weights = {entry["name"]: f"{entry['size']} bytes, sha256 {entry['sha256']}" for entry in source.weight_files()}
    beside = {n: files.sha256_of(source.path / n) for n in SETTINGS_FILES if (source.path / n).is_file()}
    settings = {
        **msgspec.to_builtins(options.recipe),
        "calib_tokens": options.calib_tokens,
        "seed": options.seed,
        "skip": list(options.skip),
        "strict": options.strict,
        "allow_nonfinite": options.allow_nonfinite,
        "imatrix": options.imatrix,
    }
    data = calibrated.fingerprint() if calibrated else None
    return {"weights": weights, **beside, **settings, "calibration_data": data, "version": dlm_edge.__version__}
