"""`dlm-edge eval`: how good an artefact is."""

from __future__ import annotations

from typing import Any

import click

from dlm_edge.cli.attention_options import NAMES, for_each_policy, policy_options, take_attention
from dlm_edge.cli.output import print_json, progress_line, table
from dlm_edge.cli.sampler_options import sampler_options, take_sampler


@click.command("eval")
@click.argument("artefact", metavar="BUNDLE|CKPT")
@click.option("--suite", type=click.Choice(["quick", "full"]), default="quick", show_default=True)
@click.option("--against", metavar="OTHER", help="Reference artefact: NLL difference per window and commit-flip rate.")
@sampler_options
@click.option("--task", "tasks", multiple=True, help="Only this task; may be given several times.")
@click.option("--samples", type=click.IntRange(1), help="Samples per task, instead of the suite's number.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads of the model; default: all cores.")
@click.option("--attention", "policy", default="dense", show_default=True, help=NAMES)
@policy_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    artefact: str,
    suite: str,
    against: str | None,
    tasks: tuple[str, ...],
    samples: int | None,
    seed: int,
    threads: int | None,
    policy: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Masked NLL on held-out Python sources and exact match on seeded tasks.

    Sparse attention is for the tasks; the NLL is always that of dense attention.
    """
    import msgspec

    sampler, own = take_sampler(options)

    from dlm_edge.evaluation.evaluate import evaluate

    report = evaluate(
        artefact,
        suite=suite,
        against=against,
        sampler=sampler,
        options=own,
        tasks=list(tasks) or None,
        samples=samples,
        seed=seed,
        threads=threads,
        attention=for_each_policy((policy,), take_attention(options))[0],
        progress=progress_line,
    )
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    print(f"masked NLL        {report.masked_nll:.4f} +- {report.masked_nll_se:.4f} nats/token", end="")
    print(f", {report.bits_per_byte:.3f} bits/byte")
    for bucket in report.masked_nll_by_bucket:
        if bucket["tokens"]:
            print(f"  {bucket['low']:.0%}-{bucket['high']:.0%} hidden  {bucket['nll']:.4f} nats/token")
    rows = [["task", "exact match", "se", "n"]]
    for name, task in report.tasks.items():
        rows.append([name, f"{task['exact_match']:.1%}", f"{task['standard_error']:.1%}", str(task["n"])])
    print(table(rows))
    print(f"all tasks         {report.exact_match:.1%} +- {report.exact_match_se:.1%}, sampler {report.sampler}")
    print(f"steps per token   {report.steps_per_token:.3f}")
    print(f"steps per block   {report.steps_per_block:.2f}")
    if policy != "dense":
        print(f"density           {report.density:.3f} with {policy}, active rows {report.active_rows:.3f}")
    print(f"speed             {report.effective_tokens_per_s:.1f} effective tokens/s")
    if report.commit_flip_rate is not None:
        print(f"against {against}: NLL {report.delta_nll:+.4f} +- {report.delta_nll_se:.4f} nats/token", end="")
        print(f", commit-flip rate {report.commit_flip_rate:.2%}")
