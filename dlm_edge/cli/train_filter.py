"""`dlm-edge train-filter`: the filter that the sampler learn2pd decides by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dlm_edge.cli.output import print_json, progress_line, table

if TYPE_CHECKING:
    from dlm_edge.filter_training import FilterReport


@click.command("train-filter")
@click.argument("bundle", metavar="BUNDLE")
@click.option("--prompts", type=click.Path(path_type=Path), metavar="FILE", help="One per line, or .jsonl.")
@click.option("--max-new-tokens", type=click.IntRange(1), metavar="N", help="For each prompt of FILE; default: 64.")
@click.option("--samples", type=click.IntRange(1), metavar="N", help="Of each built-in task (40), or of FILE (all).")
@click.option("--epochs", type=click.IntRange(1), default=60, show_default=True, help="Times that it sees each step.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the tasks and the training.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the model; default: all cores.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundle: str,
    prompts: Path | None,
    max_new_tokens: int | None,
    samples: int | None,
    epochs: int,
    seed: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train the filter of the sampler learn2pd for BUNDLE, and write it there.

    Prompts are decoded one token per step; the filter learns from the confidences of a block which predictions stay.
    Without --prompts they are the built-in tasks and pieces of Python, which mean something to the reference models
    only. Ctrl-C leaves BUNDLE as it was.
    """
    import msgspec

    from dlm_edge.filter_training import train_filter

    report = train_filter(
        bundle,
        prompts=prompts,
        samples=samples,
        max_new_tokens=max_new_tokens,
        epochs=epochs,
        seed=seed,
        threads=threads,
        progress=progress_line,
    )
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        show(report)


def show(report: FilterReport) -> None:
    rows = [["", "predictions", "final", "answered right", f"accepted at {report.tau:g}", "of those final"]]
    for name, found in (("trained on", report.trained), ("held out", report.held_out)):
        shares = (found[key] for key in ("share_right", "accuracy", "accepted", "precision"))
        rows.append([name, str(found["n_slots"]), *(f"{share:.1%}" for share in shares)])
    print(table(rows))
    print(f"\n{report.parameters} parameters for blocks of {report.block_length}, from {report.steps} steps", end="")
    print(f" of {report.prompts} prompts ({report.source})")
    if report.source == "tasks and text":
        print("prompts: the built-in ones; for another model than the reference ones give its own with --prompts")
    print(f"{report.decoding_seconds:.1f} s of decoding, {report.training_seconds:.1f} s of training")
    print(f"written to {report.bundle}; use it with --sampler learn2pd")
