"""`dlm-edge quantize`: a checkpoint with its linear layers in 2, 3, 4 or 8 bits."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from dlm_edge.cli.output import print_json, progress_line, size


@click.command("quantize")
@click.argument("model")
@click.option("-o", "--output", metavar="OUT", required=True, help="Folder to write; must not exist yet.")
@click.option("--method", type=click.Choice(["rtn", "gptq"]), default="gptq", show_default=True)
@click.option("--bits", type=click.Choice(["2", "3", "4", "8"]), default="4", show_default=True)
@click.option("--group-size", type=click.Choice(["16", "32", "64", "128", "256"]), default="64", show_default=True)
@click.option(
    "--calibration",
    type=click.Choice(["forward", "clean"]),
    default="forward",
    show_default=True,
    help="States with hidden tokens, as while decoding, or clean text.",
)
@click.option("--calib-data", metavar="FILE", help="Your own text, .txt or .jsonl; default: a shipped mix.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--skip", metavar="PATTERN", multiple=True, help="Keep layers of this name in float, as in '*.0.*'.")
@click.option("--dry-run", is_flag=True, help="Only print the plan and estimates of size, memory and time.")
@click.option("--resume", is_flag=True, help="Continue an unfinished run.")
@click.option("--restart", is_flag=True, help="Discard an unfinished run, replace an existing output.")
@click.option("--strict", is_flag=True, help="Fail where a layer would have to fall back to rounding.")
@click.option("--allow-nonfinite", is_flag=True, help="Take NaN and infinity for zero, and note it in the record.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model: str,
    output: str,
    bits: str,
    group_size: str,
    dry_run: bool,
    resume: bool,
    restart: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Quantize the checkpoint folder MODEL (or `reference`, `reference-full`)."""
    import msgspec

    from dlm_edge.quant import plan_only, quantize

    options |= {"bits": int(bits), "group_size": int(group_size)}
    if dry_run:
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
