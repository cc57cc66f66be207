"""`dlm-edge demo`: the whole way on the embedded reference model."""

from __future__ import annotations

import click

from dlm_edge.cli.output import print_json, progress_line, size, table


@click.command("demo")
@click.option("--out", default="dlm-edge-demo", show_default=True, help="Folder for bundles and report.html.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(out: str, as_json: bool) -> None:
    """Quantize the reference model to 4 bits, export both precisions, measure them, write report.html."""
    from dlm_edge.demo import as_json as to_json
    from dlm_edge.demo import demo

    report = demo(out, progress=progress_line)
    if as_json:
        print_json(to_json(report))
        return
    tasks = list(report.rows[0].tasks)
    rows = [["", *(row.name for row in report.rows)]]
    rows.append(["size on disk", *(size(row.size_bytes) for row in report.rows)])
    rows.append(["masked NLL (nats/token)", *(f"{row.masked_nll:.4f}" for row in report.rows)])
    rows += [[f"exact match {task}", *(f"{row.tasks[task]:.0%}" for row in report.rows)] for task in tasks]
    rows.append(["exact match, all", *(f"{row.exact_match:.1%}" for row in report.rows)])
    rows.append(["steps per token", *(f"{row.steps_per_token:.2f}" for row in report.rows)])
    rows.append(["effective tokens/s", *(f"{row.effective_tokens_per_s:.0f}" for row in report.rows)])
    print(table(rows))
    print(f"report    {report.report}")
    print(f"next      dlm-edge generate {out}/4bit -p 'copy: Ada Bob Cleo =>'")
