"""The table and the plot of decoding.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

TASKS = ("copy", "reverse", "json", "close", "sort", "shuffle")  # from weakly to strongly dependent answers
WEAK, STRONG = ("copy", "json"), ("sort", "shuffle")
PANEL = (380, 400)  # width and height
MARGIN = 52
LOWEST = {WEAK: -4.0, STRONG: -25.0}  # change in points that a panel shows in its place


@dataclass(frozen=True, slots=True)
class Summary:
    """One row of one model. Exact match in percent, its paired difference to static and the standard error of that;
    forward passes per token and in units of static's; tokens per second in units of static's."""

    name: str
    exact: dict[str, float]
    change: dict[str, tuple[float, float]]
    passes_per_token: float
    fewer: dict[str, float]
    faster: float
    samples: int


def summaries(report: dict[str, Any], model: str) -> list[Summary]:
    parts = [(key.split("/", 3), answers) for key, answers in report["rows"].items() if key.startswith(f"{model}/")]
    names = list(dict.fromkeys(name for (_, _, _, name), _ in parts))
    by_row = {
        name: {
            task: [answers for (_, t, _, n), answers in parts if (t, n) == (task, name)]
            for task in TASKS
            if any((t, n) == (task, name) for (_, t, _, n), _ in parts)
        }
        for name in names
    }
    static = by_row["static"]
    return [summary(name, tasks, static) for name, tasks in by_row.items()]


def summary(name: str, tasks: dict[str, list[dict[str, Any]]], static: dict[str, list[dict[str, Any]]]) -> Summary:
    exact, change, fewer = {}, {}, {}
    for task, parts in tasks.items():
        ours, theirs = bits(parts), bits(static[task])[: len(bits(parts))]
        exact[task] = 100 * float(ours.mean())
        difference = 100 * (ours - theirs)
        change[task] = float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))
        fewer[task] = total(static[task], "forward_passes") / total(parts, "forward_passes")
    everything = [part for parts in tasks.values() for part in parts]
    speed = total(everything, "new_tokens") / total(everything, "seconds")
    yardstick = sum(p["static"]["new_tokens"] for p in everything) / sum(p["static"]["seconds"] for p in everything)
    passes = total(everything, "forward_passes") / total(everything, "new_tokens")
    return Summary(name, exact, change, passes, fewer, speed / yardstick, min(len(bits(p)) for p in tasks.values()))


def bits(parts: Sequence[dict[str, Any]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([int(bit) for part in parts for bit in part["right"]], np.float64)


def total(parts: Sequence[dict[str, Any]], name: str) -> float:
    return float(sum(part[name] for part in parts))


def models(report: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(key.split("/")[0] for key in report["rows"]))


def markdown(report: dict[str, Any]) -> str:
    lines = [f"{report['date']}, {report['machine']}, one thread."]
    for model in models(report):
        found = summaries(report, model)
        lines += ["", f"`{model}`, {found[0].samples} samples of each task:", ""]
        lines += ["| sampler | passes per token | fewer passes | tokens/s | " + " | ".join(TASKS) + " |"]
        lines += ["|---|---|---|---|" + "---|" * len(TASKS)]
        lines += [line(each) for each in found]
    return "\n".join(lines)


def line(row: Summary) -> str:
    cells = []
    for task in TASKS:
        mean, error = row.change[task]
        cells.append(f"{row.exact[task]:.1f}" + ("" if row.name == "static" else f" ({mean:+.1f} ± {error:.1f})"))
    mean_fewer = float(np.exp(np.mean([np.log(value) for value in row.fewer.values()])))
    head = f"| {row.name} | {row.passes_per_token:.2f} | {mean_fewer:.2f}x | {row.faster:.2f}x | "
    return head + " | ".join(cells) + " |"


def plot(report: dict[str, Any]) -> str:
    """SVG: for each model, how many passes less against what it costs, on weakly and on strongly dependent tasks."""
    body, height = [], 0.0
    for model in models(report):
        found = summaries(report, model)
        for column, tasks in enumerate((WEAK, STRONG)):
            points = [
                (float(np.mean([s.fewer[t] for t in tasks])), float(np.mean([s.change[t][0] for t in tasks])))
                for s in found
            ]
            inside = panel(f"{model}: {', '.join(tasks)}", points, LOWEST[tasks])
            body.append(f'<g transform="translate({column * PANEL[0]},{height})">{inside}</g>')
        names = [
            f'<text x="{2 * PANEL[0] + 10}" y="{height + MARGIN + 14 * i}">{i + 1}  {escape(s.name)}</text>'
            for i, s in enumerate(found)
        ]
        body += names
        height += max(PANEL[1], MARGIN + 14 * len(names) + 10)
    width = 2 * PANEL[0] + 180
    style = "text { font: 11px system-ui, sans-serif; fill: #222; } .small { font-size: 9px; }"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" width="{width}" height="{height:g}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="white"/>\n' + "\n".join(body) + "</svg>\n"
    )


def panel(title: str, points: Sequence[tuple[float, float]], lowest: float) -> str:
    """`points`: passes of static over passes, and change of exact match in points. What lies below `lowest` is
    drawn at the edge, with its value."""
    right = max(2.0, max(x for x, _ in points) * 1.05)
    low, high = max(min(-2.0, min(y for _, y in points)), lowest) * 1.1, max(2.0, max(y for _, y in points)) * 1.1
    width, height = PANEL[0] - 2 * MARGIN, PANEL[1] - 2 * MARGIN

    def place(x: float, y: float) -> tuple[float, float]:
        return MARGIN + (x - 0.8) / (right - 0.8) * width, MARGIN + (high - max(y, low)) / (high - low) * height

    zero = place(0.8, 0)[1]
    parts = [
        f'<text x="{MARGIN}" y="{MARGIN - 22}" font-weight="bold">{escape(title)}</text>',
        f'<line x1="{MARGIN}" x2="{MARGIN + width}" y1="{zero:.1f}" y2="{zero:.1f}" stroke="#aaa"/>',
        f'<text x="{MARGIN + width}" y="{MARGIN + height + 30}" text-anchor="end">times fewer passes than static</text>',
        f'<text x="{MARGIN}" y="{MARGIN - 8}" class="small">exact match, points against static</text>',
    ]
    for x in ticks(0.8, right):
        at = place(x, 0)[0]
        parts.append(f'<text x="{at:.1f}" y="{MARGIN + height + 14}" text-anchor="middle">{x:g}</text>')
    for y in ticks(low, high):
        parts.append(f'<text x="{MARGIN - 6}" y="{place(1, y)[1] + 4:.1f}" text-anchor="end">{y:g}</text>')
    taken: list[tuple[float, float]] = []
    for number, (x, y) in enumerate(points, 1):
        at, up = place(x, y)
        label = str(number) if y >= low else f"{number}: {y:.0f}"
        beside = free_place(at + 4, up - 3, taken)
        parts.append(f'<circle cx="{at:.1f}" cy="{up:.1f}" r="2.5" fill="{"#222" if number == 1 else "#c0562f"}"/>')
        parts.append(f'<text x="{beside[0]:.1f}" y="{beside[1]:.1f}" class="small">{label}</text>')
    return "".join(parts)


def free_place(x: float, y: float, taken: list[tuple[float, float]]) -> tuple[float, float]:
    """Near (x, y), alternately above and below, where no label is yet; notes it in `taken`."""
    for step in range(40):
        up = y + (step + 1) // 2 * 9 * (-1) ** step
        if all(abs(x - other) > 13 or abs(up - height) > 8 for other, height in taken):
            break
    taken.append((x, up))
    return x, up


def ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers between both."""
    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 50) if (high - low) / s <= 8)
    return [round(step * i, 6) for i in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]
