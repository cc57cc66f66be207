"""`dlm-edge tune`: the sampler and the setting that a bundle uses by default."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dlm_edge.cli.output import print_json, progress_line, table
from dlm_edge.cli.sampler_options import SamplerName

if TYPE_CHECKING:
    from dlm_edge.tuning.report import TuneReport, TuneRow

HEADING = (
    "setting", "agreement", "+-", "identical", "exact match", "steps/token", "passes", "tokens/s", "speed", "prompts", "",
)  # fmt: skip
FEW = 20  # prompts, below which one text decides about two in a hundred tokens


@click.command("tune")
@click.argument("bundle", metavar="BUNDLE")
@click.option(
    "--agreement", type=click.FloatRange(0, 1), default=0.98, show_default=True, help="With static, at least."
)
@click.option(
    "--sampler", "samplers", type=SamplerName(), multiple=True, metavar="NAME", help="Only this one; repeatable."
)
@click.option("--prompts", type=click.Path(path_type=Path), metavar="FILE", help="One per line, or .jsonl.")
@click.option("--max-new-tokens", type=click.IntRange(1), metavar="N", help="For each prompt of FILE.")
@click.option("--samples", type=click.IntRange(1), metavar="N", help="Of each built-in task (8), or of FILE (all).")
@click.option(
    "--repeats", type=click.IntRange(1), default=3, show_default=True, help="Rounds of which times are medians."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the tasks and the samplers.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the model; default: all cores.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="An SVG, instead of tune.svg in BUNDLE.")
@click.option("--dry-run", is_flag=True, help="Leave BUNDLE as it is.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundle: str,
    agreement: float,
    samplers: tuple[str, ...],
    prompts: Path | None,
    max_new_tokens: int | None,
    samples: int | None,
    repeats: int,
    seed: int,
    threads: int | None,
    plot: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Try samplers on a few prompts and make the fastest that holds the agreement the default of BUNDLE.

    Agreement: tokens equal to those of `static`, one per step, position by position until either text ends; what one
    text has beyond the other's end agrees with nothing. Without --prompts they are the built-in tasks, which mean
    something to the reference models only. Ctrl-C leaves BUNDLE as it was.
    """
    import msgspec

    from dlm_edge.tuning.tune import tune

    report = tune(
        bundle,
        agreement=agreement,
        samplers=samplers,
        prompts=prompts,
        samples=samples,
        max_new_tokens=max_new_tokens,
        repeats=repeats,
        seed=seed,
        threads=threads,
        plot=plot,
        dry_run=dry_run,
        progress=progress_line,
    )
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        show(report)


def show(report: TuneReport) -> None:
    """Those that hold, fastest first, then those that were dropped, best first; what was refused at the end."""
    measured = [row for row in report.rows if row.verdict != "refused"]
    ordered = sorted(measured, key=lambda row: (row.verdict == "dropped", *rank(row)))
    print(table([list(HEADING), *(cells(row, report.prompts) for row in ordered)]))
    for row in report.rows:
        if row.verdict == "refused":
            print(f"left out: {row.label}: {row.why}")
    if special := [row for row in report.rows if row.verdict == "special"]:
        print(f"special: {special[0].why}")
    best = report.best
    print(f"\nchosen: {best.label}, agreement {best.agreement:.3f}, {best.speed_ratio:.2f} times the speed of static")
    if report.source == "tasks":
        print("prompts: the built-in tasks; for another model than the reference ones give its own with --prompts")
    if report.prompts < FEW:
        print(f"agreement on {report.prompts} prompts says little: give {FEW} or more")
    print(f"default of {report.bundle}" if report.written else f"{report.bundle} was left as it is")
    if report.plot is not None:
        print(f"plot: {report.plot}")


def rank(row: TuneRow) -> tuple[float, ...]:
    return (-row.agreement,) if row.verdict == "dropped" else (-row.speed_ratio,)


def cells(row: TuneRow, prompts: int) -> list[str]:
    return [
        row.label,
        f"{row.agreement:.3f}",
        f"{row.agreement_se:.3f}",
        f"{row.identical:.0%}",
        "-" if row.exact_match is None else f"{row.exact_match:.0%}",
        f"{row.steps_per_token:.3f}",
        str(row.forward_passes),
        f"{row.effective_tokens_per_s:.0f}",
        f"{row.speed_ratio:.2f}x",
        str(row.prompts) if row.prompts == prompts else f"{row.prompts} of {prompts}",
        "" if row.verdict == "holds" else row.verdict,
    ]
