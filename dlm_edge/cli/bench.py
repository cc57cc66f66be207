"""`dlm-edge bench`: speed of a bundle on this machine."""

from __future__ import annotations

from typing import Any

import click

from dlm_edge.cli.attention_options import NAMES, for_each_policy, policy_options, take_attention
from dlm_edge.cli.output import print_json, progress_line, size, table
from dlm_edge.cli.sampler_options import sampler_options, take_sampler

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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    artefact: str,
    prompt_tokens: tuple[int, ...],
    new_tokens: int,
    threads: int | None,
    repeats: int,
    policies: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Time prompts of random tokens; medians, with the steps per token beside every speed."""
    import msgspec

    sampler, own = take_sampler(options)

    from dlm_edge.benchmark import benchmark

    report = benchmark(
        artefact,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        threads=threads,
        sampler=sampler,
        options=own,
        attention=for_each_policy(policies, take_attention(options)),
        progress=progress_line,
    )
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    print(f"{report.machine['processor']}, {report.setting['sampler']}, median of {repeats}")
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
    print(table(rows))
