"""report.html: the figures of a run on one page that needs no network, no script and no other file."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from dlm_edge import __version__
from dlm_edge.evaluation.evaluate import EvalReport

if TYPE_CHECKING:
    from dlm_edge.demo import DemoRow

COLOURS = ("#4062bb", "#e08e45", "#59a96a", "#a05195")

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
svg text { font: 13px system-ui, sans-serif; fill: #222; }
.note { color: #666; font-size: .9rem; }
"""


def report_page(model: str, rows: Sequence[DemoRow], reports: Mapping[str, EvalReport]) -> str:
    """HTML of the demo's table, masked NLL by share of hidden tokens, and exact match per task."""
    tasks = list(rows[0].tasks)
    first = next(iter(reports.values()))
    sections = [
        f"<h1>dlm-edge on {escape(model)}</h1>",
        f"<p class=note>dlm-edge {__version__}, {escape(platform.platform())}, Python {platform.python_version()}, "
        f"sampler {escape(first.sampler)}, {first.samples} task samples, seed {first.seed}</p>",
        html_table(
            ["", "size", "masked NLL", "exact match", "steps per token", "steps per block", "density", "tokens/s"],
            [
                [
                    row.name,
                    f"{row.size_bytes / 2**20:.1f} MiB",
                    f"{row.masked_nll:.4f} nats",
                    f"{row.exact_match:.1%}",
                    f"{row.steps_per_token:.2f}",
                    f"{reports[row.name].steps_per_block:.1f}",
                    f"{reports[row.name].density:.2f}",
                    f"{row.effective_tokens_per_s:.0f}",
                ]
                for row in rows
            ],
        ),
        "<h2>Exact match per task</h2>",
        html_table(["", *tasks], [[row.name, *(f"{row.tasks[t]:.0%}" for t in tasks)] for row in rows]),
        "<h2>Masked NLL by share of hidden tokens</h2>",
        bar_chart(reports),
    ]
    for name, report in reports.items():
        if report.delta_nll is not None and report.commit_flip_rate is not None:
            sections.append(
                f"<p>{escape(name)} against full precision: {report.delta_nll:+.4f} &plusmn; {report.delta_nll_se:.4f} "
                f"nats per token on the same states; {report.commit_flip_rate:.2%} of the denoising steps commit "
                "something else.</p>"
            )
    body = "\n".join(sections)
    head = f'<meta charset="utf-8"><title>dlm-edge: {escape(model)}</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html lang=en>\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n"


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(c)}</{tag}>" for c in cells) + "</tr>"

    return "<table>\n" + "\n".join([line(header, "th"), *(line(row, "td") for row in rows)]) + "\n</table>"


def bar_chart(reports: Mapping[str, EvalReport]) -> str:
    """Grouped bars, one group per bucket, one colour per artefact."""
    buckets = next(iter(reports.values())).masked_nll_by_bucket
    top = max(b["nll"] for r in reports.values() for b in r.masked_nll_by_bucket if b["nll"] is not None)
    width, height, group = 640, 220, 640 // len(buckets)
    bar = (group - 40) // len(reports)
    parts = []
    for g, bucket in enumerate(buckets):
        label = f"{bucket['low']:.0%} to {bucket['high']:.0%} hidden"
        parts.append(f'<text x="{g * group + 10}" y="{height + 20}">{label}</text>')
        for i, report in enumerate(reports.values()):
            nll = report.masked_nll_by_bucket[g]["nll"]
            if nll is None:
                continue
            size, x = nll / top * (height - 30), g * group + 10 + i * bar
            colour = COLOURS[i % len(COLOURS)]
            parts.append(
                f'<rect x="{x}" y="{height - size:.1f}" width="{bar - 4}" height="{size:.1f}" fill="{colour}"/>'
                f'<text x="{x}" y="{height - size - 6:.1f}">{nll:.3f}</text>'
            )
    for i, name in enumerate(reports):
        y = height + 45 + 20 * i
        parts.append(f'<rect x="10" y="{y - 11}" width="12" height="12" fill="{COLOURS[i % len(COLOURS)]}"/>')
        parts.append(f'<text x="28" y="{y}">{escape(name)} (nats per token)</text>')
    total = height + 60 + 20 * len(reports)
    return f'<svg viewBox="0 0 {width} {total}" role="img" aria-label="masked NLL">' + "".join(parts) + "</svg>"
