"""`dlm-edge bench`: speed of a bundle on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dlm_edge.cli.attention_options import NAMES, for_each_policy, policy_options, take_attention
from dlm_edge.cli.output import print_json, progress_line, size, table
from dlm_edge.cli.sampler_options import sampler_options, take_sampler
from dlm_edge.errors import UsageProblem

if TYPE_CHECKING:
    from dlm_edge.benchmark import BenchReport
    from dlm_edge.roofline import Roofline

HEADING = (
    "attention", "prompt", "new", "prefill s", "s/forward", "tokens/s", "steps/token", "steps/block", "density",
    "active rows", "peak memory", "spread",
)  # fmt: skip


@click.command("bench")
@click.argument("artefact", metavar="BUNDLE|MODEL")
@click.option("--prompt-tokens", type=click.IntRange(1), multiple=True, default=(64, 512), show_default=True)
@click.option("--new-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads of the model; default: all cores.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@sampler_options
@click.option(
    "--attention",
    "policies",
    multiple=True,
    default=("dense",),
    show_default=True,
    help=NAMES + " Several times: each.",
)
@policy_options
@click.option(
    "--roofline/--no-roofline",
    default=True,
    show_default=True,
    help="Say where the time of a step goes, and what it reaches of this machine's peaks; some seconds.",
)
@click.option("--report", metavar="FILE.html", type=click.Path(dir_okay=False), help="Write a page with the roofline.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    artefact: str,
    prompt_tokens: tuple[int, ...],
    new_tokens: int,
    threads: int | None,
    repeats: int,
    policies: tuple[str, ...],
    roofline: bool,
    report: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Time prompts of random tokens; medians, with the steps per token beside every speed."""
    import msgspec

    sampler, own = take_sampler(options)
    if report and not roofline:
        raise UsageProblem(
            "E-USAGE", "--report shows the roofline, and --no-roofline leaves it out", "drop one of them"
        )

    from dlm_edge.benchmark import benchmark

    found = benchmark(
        artefact,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        threads=threads,
        sampler=sampler,
        options=own,
        attention=for_each_policy(policies, take_attention(options)),
        roofline=roofline,
        progress=progress_line,
    )
    if report and found.roofline is not None:
        write_page(Path(report), artefact, found)
    for note in found.notes:
        progress_line(note)
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    print(f"{found.machine['processor']}, {found.setting['sampler']}, median of {repeats}")
    print(table(request_rows(found)))
    if found.roofline is not None:
        print_roofline(found.roofline)


def request_rows(report: BenchReport) -> list[list[str]]:
    """The table of whole requests."""
    rows = [list(HEADING)]
    for row in report.rows:
        rows.append(
            [
                row["attention"],
                str(row["prompt_tokens"]),
                str(row["new_tokens"]),
                f"{row['prefill_seconds']:.3f}",
                f"{row['seconds_per_forward']:.4f}",
                f"{row['effective_tokens_per_s']:.1f}",
                f"{row['steps_per_token']:.2f}",
                f"{row['steps_per_block']:.1f}",
                f"{row['density']:.2f}",
                f"{row['active_rows']:.2f}",
                size(row["peak_rss_bytes"]),
                f"{row['spread']:.2f}",
            ]
        )
    return rows


def print_roofline(roofline: Roofline) -> None:
    from dlm_edge.roofline.tables import peak_rows, place_rows, role_rows, time_rows

    for rows in (time_rows(roofline), role_rows(roofline), place_rows(roofline), peak_rows(roofline)):
        print()
        print(table(rows))


def write_page(path: Path, artefact: str, found: BenchReport) -> None:
    from dlm_edge import files
    from dlm_edge.roofline.page import roofline_page

    assert found.roofline is not None
    page = roofline_page(artefact, found.machine, found.setting, request_rows(found), found.roofline)
    files.write_file(path, page)
    progress_line(f"wrote {path}")
