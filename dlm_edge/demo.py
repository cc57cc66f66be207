"""The main job on the embedded reference model: quantize, export, measure, and one page with the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from dlm_edge import files
from dlm_edge.bundle import is_bundle, open_bundle
from dlm_edge.evaluation.evaluate import EvalReport, evaluate
from dlm_edge.report_page import report_page


class DemoRow(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    size_bytes: int
    masked_nll: float
    exact_match: float
    tasks: dict[str, float]
    steps_per_token: float
    effective_tokens_per_s: float


class DemoReport(msgspec.Struct, frozen=True, kw_only=True):
    rows: list[DemoRow]
    report: str


def demo(out: str | Path, *, model: str = "reference", progress: Callable[[str], None] | None = None) -> DemoReport:
    """Build and measure full precision and 4 bits of `model` in the folder `out`; finished parts are kept."""
    from dlm_edge.export import export
    from dlm_edge.quant import quantize

    say, out = progress or (lambda _: None), Path(out)
    files.make_folder(out)
    full, checkpoint, small = out / "full-precision", out / "4bit-checkpoint", out / "4bit"
    if not is_bundle(full):
        export(model, full, progress=say)
    if not (checkpoint / "dlm_edge.json").is_file():
        quantize(model, checkpoint, recipe="w4", resume=True, progress=say)
    if not is_bundle(small):
        export(checkpoint, small, progress=say)

    reports: dict[str, EvalReport] = {}
    rows = []
    for name, bundle in (("full precision", full), ("4 bits (recipe w4)", small)):
        say(f"measuring {name}")
        against = full if bundle is small else None
        reports[name] = report = evaluate(bundle, suite="quick", against=against, progress=say)
        rows.append(
            DemoRow(
                name=name,
                size_bytes=open_bundle(bundle).size_bytes,
                masked_nll=report.masked_nll,
                exact_match=report.exact_match,
                tasks={task: result["exact_match"] for task, result in report.tasks.items()},
                steps_per_token=report.steps_per_token,
                effective_tokens_per_s=report.effective_tokens_per_s,
            )
        )
    page = out / "report.html"
    files.write_file(page, report_page(model, rows, reports))
    return DemoReport(rows=rows, report=str(page))


def as_json(report: DemoReport) -> dict[str, Any]:
    builtin: dict[str, Any] = msgspec.to_builtins(report)
    return builtin
