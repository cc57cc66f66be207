"""`dlm-edge bench`: speed of a bundle on this machine."""

from __future__ import annotations

import click

from dlm_edge.cli.output import print_json, progress_line, size, table


@click.command("bench")
@click.argument("artefact", metavar="BUNDLE|MODEL")
@click.option("--prompt-tokens", type=click.IntRange(1), multiple=True, default=(64, 512), show_default=True)
@click.option("--new-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads of the model; default: all cores.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--sampler", type=click.Choice(["static", "threshold"]), default="threshold", show_default=True)
@click.option("--threshold", type=click.FloatRange(0, 2), default=0.9, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    artefact: str,
    prompt_tokens: tuple[int, ...],
    new_tokens: int,
    threads: int | None,
    repeats: int,
    sampler: str,
    threshold: float,
    as_json: bool,
) -> None:
    """Time prompts of random tokens; medians, with the steps per token beside every speed."""
    import msgspec

    from dlm_edge.benchmark import benchmark

    report = benchmark(
        artefact,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        threads=threads,
        sampler=sampler,
        threshold=threshold,
        progress=progress_line,
    )
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    print(f"{report.machine['processor']}, {report.setting['sampler']}, median of {repeats}")
    rows = [["prompt", "new", "prefill s", "s/forward", "tokens/s", "steps/token", "peak memory", "spread"]]
    for row in report.rows:
        rows.append(
            [
                str(row["prompt_tokens"]),
                str(row["new_tokens"]),
                f"{row['prefill_seconds']:.3f}",
                f"{row['seconds_per_forward']:.4f}",
                f"{row['effective_tokens_per_s']:.1f}",
                f"{row['steps_per_token']:.2f}",
                size(row["peak_rss_bytes"]),
                f"{row['spread']:.2f}",
            ]
        )
    print(table(rows))
