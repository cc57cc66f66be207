"""`quantize`: a checkpoint folder becomes a quantized one, layer by layer, and can be stopped at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

import dlm_edge
from dlm_edge.checkpoint import Checkpoint, open_checkpoint
from dlm_edge.errors import UsageProblem
from dlm_edge.journal import WorkFolder
from dlm_edge.memory import peak_rss_bytes
from dlm_edge.quant.calibration import Calibration, load_calibration
from dlm_edge.quant.job import Job
from dlm_edge.quant.output_folder import folder_size
from dlm_edge.quant.plan import OUTER_BITS, Plan, QuantizeOptions, check_resources, make_plan
from dlm_edge.quant.report import LayerReport, QuantizeReport
from dlm_edge.quantized import LayerRecord


def quantize(
    model: str | Path,
    out: str | Path,
    *,
    method: str = "gptq",
    bits: int = 4,
    group_size: int = 64,
    calibration: str = "forward",
    calib_data: str | Path | None = None,
    seed: int = 0,
    skip: Iterable[str] = (),
    resume: bool = False,
    restart: bool = False,
    strict: bool = False,
    allow_nonfinite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> QuantizeReport:
    """Write the quantized checkpoint `out`; nothing stands under that name before it is complete and audited.

    Finished layers survive a kill; `resume` continues them to the same bytes as an uninterrupted run on this
    machine with as many threads. `restart` discards an unfinished run and replaces an existing output.
    Raises E-QUANT, E-CALIB, E-NAN, E-EXISTS, E-RESUME, E-BUSY, E-CHANGED, E-IO, E-MEM, E-STOPPED, and whatever
    opening the checkpoint raises.
    """
    if resume and restart:
        raise UsageProblem("E-USAGE", "resume and restart exclude each other", "give one of --resume and --restart")
    options = QuantizeOptions(
        method=method,
        bits=bits,
        group_size=group_size,
        calibration=calibration,
        calib_data=None if calib_data is None else Path(calib_data),
        seed=seed,
        skip=tuple(skip),
        strict=strict,
        allow_nonfinite=allow_nonfinite,
    )
    started, say = time.perf_counter(), progress or (lambda _: None)
    source, out = open_checkpoint(model), Path(out)
    plan = make_plan(source, options)
    check_resources(plan, out)
    calibrated = load_calibration(source, options, plan.state_tokens) if plan.state_tokens else None
    say(f"reading   {source.name}: {source.spec.family}, {source.spec.n_layers} layers")
    if calibrated:
        say(f"states    {calibrated.summary()}")
    say(f"quantize  {method}, {bits} bits, groups of {group_size}: {len(plan.roles)} linear layers")
    with WorkFolder.open(out, fingerprint(source, options, calibrated), resume=resume, restart=restart) as work:
        job = Job(source, options, plan, calibrated, work, say)
        with torch.inference_mode():
            job.run()
        reports, fallbacks, stored_bytes = job.reports(), job.fallbacks(), job.packed_bytes()
        size = folder_size(work.path)
        work.finish()
    return QuantizeReport(
        output=str(out),
        method=method,
        bits_per_weight=8 * stored_bytes / plan.n_weights,
        size_bytes=size,
        source_size_bytes=folder_size(source.path),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        layers=reports,
        fallbacks=fallbacks,
    )


def plan_only(model: str | Path, out: str | Path, **options: Any) -> QuantizeReport:
    """What `quantize` would do; sizes, memory and seconds are estimates, errors are unknown. Raises as it would."""
    chosen = QuantizeOptions(**options)
    source = open_checkpoint(model)
    plan = make_plan(source, chosen)
    check_resources(plan, Path(out))
    group, name_of = chosen.group_size, source.tensor_name
    planned = [LayerRecord(name=name_of(r), bits=OUTER_BITS, group_size=group, method="rtn") for r in plan.outer]
    planned += [
        LayerRecord(name=name_of(r), bits=chosen.bits, group_size=group, method=chosen.method) for r in plan.roles
    ]
    return QuantizeReport(
        output=str(out),
        method=chosen.method,
        bits_per_weight=plan.bits_per_weight,
        size_bytes=plan.weight_bytes,
        source_size_bytes=folder_size(source.path),
        seconds=estimate_seconds(plan),
        peak_rss_bytes=plan.ram_bytes,
        layers=[LayerReport.of(record, 0.0) for record in planned],
        fallbacks=[],
        dry_run=True,
    )


def estimate_seconds(plan: Plan) -> float:
    """Rough: measured on one 2.x GHz core, 6e10 operations a second for states, 4e6 weights a second for rounding."""
    return plan.n_weights / 4e6 + 10 * plan.n_weights * plan.state_tokens / 6e10


def fingerprint(source: Checkpoint, options: QuantizeOptions, calibrated: Calibration | None) -> dict[str, Any]:
    """What has to be the same for a job to be resumed."""
    weights = {entry["name"]: f"{entry['size']} bytes, sha256 {entry['sha256']}" for entry in source.weight_files()}
    settings = {
        "method": options.method,
        "bits": options.bits,
        "group_size": options.group_size,
        "calibration": options.calibration,
        "seed": options.seed,
        "skip": list(options.skip),
        "strict": options.strict,
        "allow_nonfinite": options.allow_nonfinite,
    }
    data = calibrated.fingerprint() if calibrated else None
    return {"weights": weights, **settings, "calibration_data": data, "version": dlm_edge.__version__}
