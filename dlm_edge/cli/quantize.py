"""`dlm-edge quantize`: a checkpoint with its linear layers in 2, 3, 4 or 8 bits."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from dlm_edge.cli.output import print_json, progress_line, size

METHODS = (
    *("rtn", "hqq", "gptq", "gptaq", "decoupleq", "awq", "awq+gptq", "mixed"),
    *("smoothquant", "int8-outlier", "w8a8", "nf4", "fp4"),
)
RECIPES = ("w4", "w4-quality", "w3", "w2", "w8a8")


@click.command("quantize")
@click.argument("model")
@click.option("-o", "--output", metavar="OUT", required=True, help="Folder to write; must not exist yet.")
@click.option("--recipe", type=click.Choice(RECIPES), help="Settings that were measured together; default: w4.")
@click.option("--method", type=click.Choice(METHODS), help="Instead of the recipe's.")
@click.option("--bits", type=float, help="2, 3, 4 or 8; with --method mixed their mean, as in 2.5.")
@click.option("--group-size", type=click.Choice(["16", "32", "64", "128", "256"]))
@click.option("--zero", type=click.Choice(["symmetric", "integer", "float"]), help="The kind of zero point.")
@click.option("--rotate", is_flag=True, help="Fold a random rotation into the model first, against outliers.")
@click.option("--tune", type=click.IntRange(0), metavar="STEPS", help="Tune scales, zeros and norms of each layer.")
@click.option(
    "--calibration",
    type=click.Choice(["forward", "rollout", "clean"]),
    help="States with hidden tokens, those of real decoding, or clean text.",
)
@click.option("--draws", type=click.IntRange(1), help="Mask draws of every text (forward); default: 1.")
@click.option(
    "--quota", type=click.Choice(["uniform", "u_shaped"]), help="States of each mask ratio (forward, rollout)."
)
@click.option("--confidence", is_flag=True, help="Weigh hidden tokens by confidence (forward, rollout).")
@click.option("--calib-data", metavar="FILE", help="Your own text, .txt, .jsonl or .parquet; default: a shipped mix.")
@click.option("--calib-tokens", type=click.IntRange(1), help="Default: what the widest layer needs, at least 32768.")
@click.option("--seed", type=click.IntRange(0), help="Of calibration data, their states and --rotate; default: 0.")
@click.option("--skip", metavar="PATTERN", multiple=True, help="Keep layers of this name in float, as in '*.0.*'.")
@click.option("--imatrix", is_flag=True, help="Also write imatrix.dat: the inputs' squares, for llama.cpp.")
@click.option("--dry-run", is_flag=True, help="Only print the plan and estimates of size, memory and time.")
@click.option("--resume", is_flag=True, help="Continue an unfinished run.")
@click.option("--restart", is_flag=True, help="Discard an unfinished run, replace an existing output.")
@click.option("--strict", is_flag=True, help="Fail on every fallback, and on too little calibration data.")
@click.option("--allow-nonfinite", is_flag=True, help="Take NaN and infinity for zero, and note it in the record.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model: str,
    output: str,
    group_size: str | None,
    dry_run: bool,
    resume: bool,
    restart: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Quantize the checkpoint folder MODEL (or `reference`, `reference-full`)."""
    import msgspec

    from dlm_edge.errors import UsageProblem
    from dlm_edge.quant import plan_only, quantize

    options |= {"group_size": None if group_size is None else int(group_size)}
    if dry_run:
        if resume or restart:
            raise UsageProblem("E-USAGE", "--dry-run neither resumes nor restarts", "leave --resume and --restart out")
        report = plan_only(model, output, **options)
    else:
        with stop_signals():
            report = quantize(model, output, **options, resume=resume, restart=restart, progress=progress_line)
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    linears = f"{len(report.layers)} weights, {report.bits_per_weight:.2f} bits each in the linear layers"
    if dry_run:
        print(f"plan      {linears}")
        print(f"output    {size(report.size_bytes)} of weights, source {size(report.source_size_bytes)}")
        print(f"needs     about {size(report.peak_rss_bytes)} of memory and {report.seconds:.0f} s")
        return
    print(f"quantized {linears}")
    for name in report.fallbacks:
        print(f"fallback  {name}: rounded to nearest")
    for row in report.quality:
        share = f"{row['low']:.0%} to {row['high']:.0%} hidden"
        change = row["after"] / row["before"] - 1
        print(f"quality   {share:>20}: {row['before']:.4f} -> {row['after']:.4f} nats per token ({change:+.2%})")
    if report.rotation:
        r = report.rotation
        largest = f"at most {r['largest_change']:.1e} in full precision ({r['where']})"
        print(f"rotation  changed the model by {largest}, logits by {r['logits_change']:.1e}")
    print(f"written   {report.output}   {size(report.size_bytes)} in {report.seconds:.1f} s")
    print(f"next      dlm-edge export {report.output} -o BUNDLE")


@contextmanager
def stop_signals() -> Iterator[None]:
    """A termination signal or a closed terminal stops the job as Ctrl-C does: a resumable folder is left."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    names = [n for n in ("SIGTERM", "SIGHUP") if hasattr(signal, n)]
    before = {n: signal.signal(getattr(signal, n), stop) for n in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
