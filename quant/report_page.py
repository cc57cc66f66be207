"""report.html of a quantized checkpoint: what each layer lost, what its inputs look like, and what the model lost."""

from __future__ import annotations

import json
import math
from html import escape
from typing import Any

from dlm_edge import __version__
from dlm_edge.quant.report import LayerReport, QuantizeReport
from dlm_edge.report_page import STYLE, html_table

BAR = 220  # pixels of the widest error bar
STRONG_PEAK = 100.0  # an input's strongest channel over its median one at which the map is darkest


def report_page(name: str, report: QuantizeReport) -> str:
    """One page without script, network or other files. No times and no memory: equal jobs write equal bytes."""
    rows = [layer for layer in report.layers if layer.error is not None]
    sections = [
        f"<h1>{escape(name)}, quantized</h1>",
        f"<p class=note>dlm-edge {__version__}: {escape(report.method)}, {report.bits_per_weight:.2f} bits per weight in "
        f"the linear layers, from {report.source_size_bytes / 2**20:.1f} MiB</p>",
        f"<p class=note>recipe {escape(json.dumps(report.recipe))}</p>",
    ]
    if report.quality:
        sections += ["<h2>Masked NLL on held-out states</h2>", quality_table(report)]
    if rows:
        sections += ["<h2>Error of each layer, and the outliers of its input</h2>", LEGEND, layer_table(rows)]
    if report.rotation:
        sections.append(f"<p>{escape(rotation_line(report.rotation))}</p>")
    if report.fallbacks:
        sections.append(f"<p>Rounded to nearest instead: {escape(', '.join(report.fallbacks))}.</p>")
    if report.calibration:
        sections.append(f"<p class=note>calibration {escape(json.dumps(report.calibration))}</p>")
    head = f'<meta charset="utf-8"><title>dlm-edge: {escape(name)}</title><style>{STYLE}</style>'
    body = "\n".join(sections)
    return f"<!doctype html>\n<html lang=en>\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n"


def rotation_line(rotation: dict[str, Any]) -> str:
    return (
        f"Rotated. In full precision, over {rotation['tokens']} tokens, that changed the logits by "
        f"{rotation['logits_change']:.1e} of the largest, and nothing by more than {rotation['largest_change']:.1e} "
        f"({rotation['where']}; allowed are {rotation['allowed']:.0e})."
    )


LEGEND = (
    "<p class=note>Share of the layer's output that is lost on the calibration states: this method (dark) and rounding to "
    "nearest (pale), square roots drawn. Peak: largest |x| of the strongest input channel over that of the median one.</p>"
)


def quality_table(report: QuantizeReport) -> str:
    cells = [
        [
            f"{row['low']:.0%} to {row['high']:.0%} hidden",
            str(row["tokens"]),
            f"{row['before']:.4f}",
            f"{row['after']:.4f}",
            f"{row['after'] / row['before'] - 1:+.2%}",
        ]
        for row in report.quality
    ]
    return html_table(["", "tokens", "before", "after (nats per token)", "change"], cells)


def layer_table(rows: list[LayerReport]) -> str:
    widest = max(math.sqrt(max(r.error or 0, r.rtn_error or 0)) for r in rows) or 1
    lines = [layer_row(row, widest) for row in rows]
    header = "".join(f"<th>{h}</th>" for h in ("weight", "bits", "error", "", "peak", "treatment and notes"))
    return f"<table>\n<tr>{header}</tr>\n" + "\n".join(lines) + "\n</table>"


def layer_row(row: LayerReport, widest: float) -> str:
    own, nearest = (BAR * math.sqrt(e or 0) / widest for e in (row.error, row.rtn_error))
    bars = (
        f'<svg width="{BAR}" height="16"><rect y="9" height="6" width="{nearest:.1f}" fill="#cfd6e6"/>'
        f'<rect y="1" height="7" width="{own:.1f}" fill="#4062bb"/></svg>'
    )
    peak = row.input_peak or 0.0
    shade = min(1.0, math.log(max(peak, 1)) / math.log(STRONG_PEAK))
    said = "; ".join([*row.treatment, *row.notes])
    return (
        f"<tr><td>{escape(row.name)}</td><td>{row.bits}</td><td>{row.error or 0:.2e}</td><td>{bars}</td>"
        f'<td style="background:rgba(192,28,59,{shade:.2f})">{peak:.1f}</td>'
        f"<td>{escape(said)}</td></tr>"
    )
