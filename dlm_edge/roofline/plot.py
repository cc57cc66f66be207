"""The roofline as a figure: operations a second over operations per byte, both logarithmic, as SVG inside a page.

Under the sloping line memory is the limit, under a level one arithmetic: one line for int8 products, one for float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dlm_edge.report_page import COLOURS
from dlm_edge.roofline.measure import Place, Roofline
from dlm_edge.roofline.tables import places

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 20, 50
MARKS = {"linear": "L", "attention": "A", "head": "H", "whole": "\N{GREEK CAPITAL LETTER SIGMA}"}


@dataclass(frozen=True, slots=True)
class Axes:
    """Powers of ten at both ends of each axis."""

    x: tuple[int, int]
    y: tuple[int, int]

    def at_x(self, value: float) -> float:
        low, high = self.x
        return LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def at_y(self, value: float) -> float:
        low, high = self.y
        return HEIGHT - BOTTOM - (math.log10(value) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def roofline_plot(roofline: Roofline) -> str:
    found = [place for phase in roofline.phases for _, place in places(phase)]
    roofs = {kind: roofline.peaks.gflop_s(kind) for kind in ("int8", "fp32")}
    axes = axes_around(found, list(roofs.values()))
    parts = [*grid(axes), *roof_lines(axes, roofs, roofline.peaks.bandwidth.value)]
    for phase, colour in zip(roofline.phases, COLOURS, strict=False):
        parts += [dot(axes, phase.name, part, place, colour) for part, place in places(phase)]
    for i, (phase, colour) in enumerate(zip(roofline.phases, COLOURS, strict=False)):
        x, y = LEFT + 14, TOP + 18 + 20 * i
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="6" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14}" y="{y}">{escape(phase.name)}, rows: {phase.rows}</text>')
    body = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="roofline">{body}</svg>'


def axes_around(found: Sequence[Place], roofs: Sequence[float]) -> Axes:
    x = [place.operations_per_byte for place in found]
    y = [place.gflop_s for place in found]
    return Axes(decades([*x, 1.0, 100.0]), decades([*y, *roofs]))


def decades(values: Sequence[float]) -> tuple[int, int]:
    return math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)


def grid(axes: Axes) -> list[str]:
    parts = []
    for power in range(axes.x[0], axes.x[1] + 1):
        x = axes.at_x(10.0**power)
        parts.append(line(x, TOP, x, HEIGHT - BOTTOM, "#ddd"))
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{10.0**power:g}</text>')
    for power in range(axes.y[0], axes.y[1] + 1):
        y = axes.at_y(10.0**power)
        parts.append(line(LEFT, y, WIDTH - RIGHT, y, "#ddd"))
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">operations per byte</text>')
    parts.append(
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">10^9 operations/s</text>'
    )
    return parts


def roof_lines(axes: Axes, roofs: dict[str, float], bandwidth: float) -> list[str]:
    """The slope ends at the higher of the level lines, which begin on it."""
    low, high = 10.0 ** axes.x[0], 10.0 ** axes.x[1]
    first = max(low, 10.0 ** axes.y[0] / bandwidth)  # the slope enters the figure at its left or lower edge
    last = min(max(roofs.values()) / bandwidth, high)
    parts = []
    if first < last:
        ends = axes.at_x(first), axes.at_y(first * bandwidth), axes.at_x(last), axes.at_y(last * bandwidth)
        parts.append(line(*ends, "#222"))
    for kind, peak in roofs.items():
        begin, y = min(max(peak / bandwidth, low), high), axes.at_y(peak)
        parts.append(line(axes.at_x(begin), y, WIDTH - RIGHT, y, "#222"))
        label = f"{kind}: {peak:.0f}"
        parts.append(f'<text x="{WIDTH - RIGHT - 4}" y="{y - 6:.1f}" text-anchor="end">{label}</text>')
    return parts


def dot(axes: Axes, phase: str, part: str, place: Place, colour: str) -> str:
    x, y = axes.at_x(place.operations_per_byte), axes.at_y(place.gflop_s)
    title = (
        f"{phase}, {part}: {place.gflop_s:.3g} GFLOP/s, {place.gbyte_s:.3g} GB/s, {place.roof_share:.0%} of its roof"
    )
    return (
        f'<g><title>{escape(title)}</title><circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="{colour}"/>'
        f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle" style="fill: #fff">{MARKS[part]}</text></g>'
    )


def line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'
