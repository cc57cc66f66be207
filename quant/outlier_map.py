"""The outlier map: one cell for each linear input, coloured by its strongest channel. A self-contained SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from dlm_edge.quant.outliers import InputProfile

CELL_WIDTH, CELL_HEIGHT, LEFT, TOP = 92, 24, 70, 40
LOWEST, HIGHEST = 1.0, 1000.0  # peak ratios at the ends of the colour scale, which is logarithmic
PALE, DARK = (0xF4, 0xF1, 0xE8), (0xA0, 0x1C, 0x3B)


def outlier_map(profiles: Sequence[InputProfile]) -> str:
    """Layers downwards, inputs across; the number is the peak of the strongest channel over that of the median one.

    Cells carry a star where one channel stands alone (a super-outlier), and details as a tooltip.
    """
    inputs = list(dict.fromkeys(tuple(p.linears) for p in profiles))
    layers = sorted({p.layer for p in profiles})
    width, height = LEFT + len(inputs) * CELL_WIDTH + 10, TOP + len(layers) * CELL_HEIGHT + 40
    parts = [
        _text(LEFT + i * CELL_WIDTH + CELL_WIDTH / 2, TOP - 12, " ".join(linears), "middle")
        for i, linears in enumerate(inputs)
    ]
    parts += [_text(LEFT - 8, TOP + n * CELL_HEIGHT + 16, f"layer {layer}", "end") for n, layer in enumerate(layers)]
    for profile in profiles:
        x = LEFT + inputs.index(tuple(profile.linears)) * CELL_WIDTH
        parts.append(_cell(profile, x, TOP + layers.index(profile.layer) * CELL_HEIGHT))
    legend = "largest |x| of the strongest channel / of the median channel; * one channel stands alone"
    parts.append(_text(LEFT, height - 14, legend, "start"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="outlier map" '
        f'font-family="system-ui, sans-serif" font-size="12">{"".join(parts)}</svg>'
    )


def _cell(profile: InputProfile, x: int, y: int) -> str:
    span = math.log(HIGHEST / LOWEST)
    share = min(1.0, max(0.0, math.log(max(profile.peak_ratio, LOWEST) / LOWEST) / span))
    colour = "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(PALE, DARK, strict=True))
    star = "*" if profile.super_outlier is not None else ""
    told = (
        f"layer {profile.layer} {' '.join(profile.linears)}: {profile.normal_count} normal, "
        f"{profile.massive_count} massive of {profile.channels} channels"
    )
    if profile.super_outlier is not None:
        told += f", channel {profile.super_outlier.channel} alone"
    told += "".join(f"; {treatment}" for treatment in profile.treatments)
    return (
        f'<g><title>{escape(told)}</title><rect x="{x}" y="{y}" width="{CELL_WIDTH - 2}" height="{CELL_HEIGHT - 2}" '
        f'fill="#{colour}"/>'
        + _text(
            x + CELL_WIDTH / 2, y + 16, f"{profile.peak_ratio:.3g}{star}", "middle", "#fff" if share > 0.5 else "#222"
        )
        + "</g>"
    )


def _text(x: float, y: float, text: str, anchor: str, fill: str = "#222") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{fill}">{escape(text)}</text>'
