"""The page that `dlm-edge bench --report` writes: figure and tables, without script or any other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dlm_edge.report_page import STYLE, html_table
from dlm_edge.roofline.measure import Roofline
from dlm_edge.roofline.plot import roofline_plot
from dlm_edge.roofline.tables import peak_rows, place_rows, role_rows, time_rows

WIDE = "body { max-width: 72rem } svg { max-width: 56rem } th, td { white-space: nowrap; padding: .3rem .5rem }"
MARKS = (
    "L linear layers, A attention, H head, \N{GREEK CAPITAL LETTER SIGMA} the whole pass. Under the slope memory is the "
    "limit, under the level lines int8 and float32 arithmetic. Peaks are medians of the same run; the spread is the "
    "slowest over the fastest time. Weights that fit into the processor's caches can be read faster than memory."
)
PARTS = (
    "Milliseconds of one pass; nodes of the graph as ONNX Runtime's profiler sees them, everything else without it. Binding: "
    "Python around ONNX Runtime; runtime: what it takes beside its nodes; store: what the host keeps of a pass; scoring: "
    "logits to scores; loop: everything else between two steps. Rest: what the parts do not add up to; negative where the "
    "profiler, which costs some microseconds a node, or a busy machine made them longer."
)


def roofline_page(
    model: str, machine: Mapping[str, Any], setting: Mapping[str, Any], rows: Sequence[Sequence[str]], found: Roofline
) -> str:
    """`rows`: the table of whole requests, its header first."""
    threads = "all cores" if machine["threads"] is None else f"threads: {machine['threads']}"
    host = found.host
    text = (
        f"Text, once a request: {1e3 * host.tokenize:.2f} ms to tokenize {host.prompt_tokens} tokens, "
        f"{1e3 * host.detokenize:.2f} ms back."
    )
    sections = [
        f"<h1>Speed of {escape(model)}</h1>",
        f"<p class=note>{escape(machine['processor'])}, {escape(machine['system'])}, {threads}, "
        f"sampler {escape(setting['sampler'])}</p>",
        "<h2>Roofline</h2>",
        roofline_plot(found),
        f"<p class=note>{escape(MARKS)}</p>",
        html_section(place_rows(found)),
        "<h2>Where the time goes</h2>",
        html_section(time_rows(found)),
        f"<p class=note>{escape(PARTS)} {escape(text)}</p>",
        html_section(role_rows(found)),
        "<h2>Peaks</h2>",
        html_section(peak_rows(found)),
        "<h2>Whole requests</h2>",
        html_section(rows),
    ]
    body = "\n".join(sections)
    head = f'<meta charset="utf-8"><title>dlm-edge bench: {escape(model)}</title><style>{STYLE}{WIDE}</style>'
    return f"<!doctype html>\n<html lang=en>\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n"


def html_section(rows: Sequence[Sequence[str]]) -> str:
    return html_table(rows[0], rows[1:])
