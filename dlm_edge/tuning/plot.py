"""Quality against speed: one dot for each setting that was measured. A self-contained SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from dlm_edge.tuning.front import front
from dlm_edge.tuning.report import TuneReport, TuneRow

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT = 860, 520, 66, 34, 96, 170
COLOURS = {"chosen": "#c2410c", "holds": "#4062bb", "special": "#59a96a", "dropped": "#9aa0a6"}
SPEEDS = (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)  # between ticks
AGREEMENTS = (1.0, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.0)  # ticks
N_TICKS = 7
LINE = 13  # pixels that labels keep apart


class Axes:
    """Speed to the right from 0. Agreement upwards by the root of what is missing to 1: where it matters, more room."""

    def __init__(self, rows: Sequence[TuneRow], target: float) -> None:
        self.fastest = max(row.speed_ratio for row in rows) * 1.05
        below = min([target, *(row.agreement for row in rows)]) - 0.01
        self.lowest = max((each for each in AGREEMENTS if each < below), default=0.0)

    def x(self, speed: float) -> float:
        return LEFT + speed / self.fastest * (WIDTH - LEFT - RIGHT)

    def y(self, agreement: float) -> float:
        return TOP + math.sqrt((1 - agreement) / (1 - self.lowest)) * (HEIGHT - TOP - BOTTOM)

    def speeds(self) -> list[float]:
        step = next((each for each in SPEEDS if self.fastest / each <= N_TICKS), SPEEDS[-1])
        return [step * n for n in range(math.floor(self.fastest / step) + 1)]


def speed_plot(report: TuneReport) -> str:
    """Dots carry details as a tooltip; the line joins those that no other beats in both."""
    rows = [row for row in report.rows if row.verdict != "refused"]
    whole = [row for row in rows if row.verdict != "dropped"]
    axes, best = Axes(rows, report.agreement), front(whole)
    parts = grid_lines(axes)
    y = axes.y(report.agreement)
    parts.append(line(LEFT, y, WIDTH - RIGHT, y, "#c2410c", dashes="5 4"))
    parts.append(text(LEFT + 6, y - 5, f"asked for: {report.agreement:g}", fill="#c2410c"))
    points = " ".join(f"{axes.x(row.speed_ratio):.1f},{axes.y(row.agreement):.1f}" for row in best)
    parts.append(f'<polyline points="{points}" fill="none" stroke="#4062bb" stroke-opacity=".5"/>')
    parts += [dot(row, axes) for row in sorted(rows, key=lambda row: row.verdict == "chosen")]
    parts += labels([row for row in rows if row in best or row.verdict == "chosen"], axes)
    parts += legend(report)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="agreement against speed" font-family="system-ui, sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def grid_lines(axes: Axes) -> list[str]:
    parts = []
    for value in axes.speeds():
        x = axes.x(value)
        parts += [line(x, TOP, x, HEIGHT - BOTTOM, "#e5e5e5"), text(x, HEIGHT - BOTTOM + 18, f"{value:g}x", "middle")]
    for value in (each for each in AGREEMENTS if each >= axes.lowest):
        y = axes.y(value)
        parts += [line(LEFT, y, WIDTH - RIGHT, y, "#e5e5e5"), text(LEFT - 8, y + 4, f"{value:.0%}", "end")]
    parts.append(
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 38, "text per second, over that of static", "middle")
    )
    parts.append(text(LEFT - 40, TOP - 14, "tokens that agree with static (root scale)"))
    return parts


def dot(row: TuneRow, axes: Axes) -> str:
    told = f"{row.label}: {row.agreement:.1%} agreement, {row.speed_ratio:.2f}x, {row.steps_per_token:.2f} steps/token"
    told += f", {row.prompts} prompts, {row.verdict}"
    fill, radius = COLOURS[row.verdict], 6 if row.verdict == "chosen" else 4
    inside = "#fff" if row.verdict == "dropped" else fill
    at = f'cx="{axes.x(row.speed_ratio):.1f}" cy="{axes.y(row.agreement):.1f}"'
    return f'<g><title>{escape(told)}</title><circle {at} r="{radius}" fill="{inside}" stroke="{fill}"/></g>'


def labels(rows: Sequence[TuneRow], axes: Axes) -> list[str]:
    """To the right of their dots, and below one another where dots are close."""
    parts, taken = [], [(-1e9, -1e9)]
    for row in sorted(rows, key=lambda row: (axes.y(row.agreement), -row.speed_ratio)):
        x, y = axes.x(row.speed_ratio) + 9, axes.y(row.agreement) + 4
        while any(abs(x - other) < 150 and abs(y - at) < LINE for other, at in taken):
            y += LINE
        taken.append((x, y))
        parts.append(text(x, y, row.label, fill=COLOURS[row.verdict]))
    return parts


def legend(report: TuneReport) -> list[str]:
    parts, x = [], LEFT
    named = {"chosen": f"chosen: {report.best.label}", "holds": "holds the agreement"}
    named |= {"special": "so does this, and is not for every request", "dropped": "does not"}
    for verdict, words in named.items():
        inside = "#fff" if verdict == "dropped" else COLOURS[verdict]
        parts.append(f'<circle cx="{x + 5}" cy="{HEIGHT - 32}" r="4" fill="{inside}" stroke="{COLOURS[verdict]}"/>')
        parts.append(text(x + 14, HEIGHT - 28, words))
        x += 40 + 7 * len(words)
    machine = f"{report.prompts} prompts ({report.source}), temperature 0, {report.machine['processor']}"
    parts.append(text(LEFT, HEIGHT - 10, machine, fill="#666"))
    return parts


def line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashed}/>'


def text(x: float, y: float, words: str, anchor: str = "start", fill: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(words)}</text>'
