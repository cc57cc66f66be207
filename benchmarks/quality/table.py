"""The table: means over seeds with their spread, the gap closed, and paired comparisons of two rows."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .results import Results
from .scoring import Arrays, percent, percent_error
from .settings import BASELINE

KINDS = ("text", "tasks")
MEASURES = {"increase": "NLL, %", "divergence": "KL, 1e-3 nats"}


@dataclass(frozen=True, slots=True)
class Group:
    """All seeds of one setting on one model."""

    model: str
    name: str
    keys: list[str]
    rows: list[dict[str, Any]]

    def mean(self, *path: str) -> float:
        return float(np.mean(self._values(path)))

    def spread(self, *path: str) -> float:
        """Standard deviation over seeds; 0 where there is one."""
        values = self._values(path)
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def _values(self, path: tuple[str, ...]) -> list[float]:
        values = []
        for row in self.rows:
            value: Any = row
            for part in path:
                value = value[part]
            values.append(float(value))
        return values


def groups(results: Results) -> list[Group]:
    found: dict[tuple[str, str], Group] = {}
    for key, row in results.rows.items():
        model, name, _ = key.split("|")
        group = found.setdefault((model, name), Group(model, name, [], []))
        group.keys.append(key)
        group.rows.append(row)
    return list(found.values())


def render(results: Results) -> str:
    """One markdown table per model: a line for each setting, in the order in which they were measured."""
    parts = []
    everything = groups(results)
    for model in dict.fromkeys(group.model for group in everything):
        mine = {group.name: group for group in everything if group.model == model}
        parts += [f"### {model}", "", *HEADER, *(line(group, mine) for group in mine.values()), ""]
    return "\n".join(parts)


HEADER = (
    "| setting | bits per weight | text: NLL + % | by share hidden | KL | tasks: NLL + % | by share hidden | KL "
    "| flips % | exact match % | gap closed text / tasks | s | MiB | seeds |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
)


def line(group: Group, others: dict[str, Group]) -> str:
    cells = [group.name, f"{group.mean('bits_per_weight'):.2f}"]
    for kind in KINDS:
        spread = f" (seeds {group.spread(kind, 'increase'):.2f})" if len(group.rows) > 1 else ""
        buckets = np.mean([row[kind]["increase_by_bucket"] for row in group.rows], 0)
        cells.append(f"{group.mean(kind, 'increase'):.2f} ± {seed_mean_error(group, kind):.2f}{spread}")
        cells.append(" ".join("-" if math.isnan(b) else f"{b:.1f}" for b in buckets))
        cells.append(f"{group.mean(kind, 'divergence'):.2f}")
    cells += [f"{group.mean('flips'):.1f}", f"{group.mean('exact_match'):.1f}", gap_closed(group, others)]
    peak = [row["peak_mib"] for row in group.rows]
    cells += [f"{group.mean('seconds'):.0f}", "-" if None in peak else f"{max(peak):.0f}", str(len(group.rows))]
    return f"| {' | '.join(cells)} |"


def gap_closed(group: Group, others: dict[str, Group]) -> str:
    """1 - increase / increase of asymmetric rounding to nearest at the same bits in groups of 32."""
    baseline = others.get(BASELINE.format(bits=group.rows[0]["bits"]))
    if baseline is None:
        return "-"
    return " / ".join(f"{100 * (1 - group.mean(k, 'increase') / baseline.mean(k, 'increase')):.0f} %" for k in KINDS)


def seed_mean_arrays(results: Results, group: Group, kind: str) -> Arrays:
    each = [results.arrays_of(key, kind) for key in group.keys]
    return {name: np.mean([arrays[name] for arrays in each], 0) for name in each[0]}


def seed_mean_error(group: Group, kind: str) -> float:
    """Standard error over windows; the windows are the same for every seed, so more seeds do not lower it."""
    return group.mean(kind, "increase_error")


@dataclass(frozen=True, slots=True)
class Comparison:
    """First minus second in percent of full precision's NLL (or of samples): negative is better for the first."""

    difference: float
    error: float

    def __str__(self) -> str:
        return f"{self.difference:+.3f} ± {self.error:.3f}"


def compare(results: Results, first: Group, second: Group, kind: str, measure: str = "increase") -> Comparison:
    """Paired over windows; the spread of each over its seeds is added to the error. `divergence` is in 1e-3 nats."""
    a, b = (seed_mean_arrays(results, group, kind) for group in (first, second))
    difference: NDArray[np.float64] = a[measure] - b[measure]
    unit = 1.0 if measure == "increase" else 10 * float(a["nats"].sum() / a["tokens"].sum())
    squares = (unit * percent_error(difference, a)) ** 2
    squares += sum(group.spread(kind, measure) ** 2 / len(group.rows) for group in (first, second))
    return Comparison(unit * percent(difference, a), math.sqrt(squares))


def against_peers(results: Results) -> str:
    """Our best setting against the best peer, per model, bits, kind of text and measure: each the lowest of its side.

    Only settings of at most the peer's bits per weight compete, so that no one wins by storing more.
    """
    lines = [
        "| model | bits | on | measure | best peer | best of ours | ours minus peer |",
        "|---|---|---|---|---|---|---|",
    ]
    everything = [group for group in groups(results) if group.rows[0]["source"] in ("ours", "peer")]
    keys = dict.fromkeys((group.model, group.rows[0]["bits"]) for group in everything)
    for (model, bits), kind, (measure, shown) in itertools.product(keys, KINDS, MEASURES.items()):
        mine = [g for g in everything if (g.model, g.rows[0]["bits"]) == (model, bits)]
        peers = [g for g in mine if g.rows[0]["source"] == "peer"]
        if not peers:
            continue
        peer = lowest(peers, kind, measure)
        limit = peer.mean("bits_per_weight") + 0.01
        ours = [g for g in mine if g.rows[0]["source"] == "ours" and g.mean("bits_per_weight") <= limit]
        if ours:
            best = lowest(ours, kind, measure)
            found = compare(results, best, peer, kind, measure)
            lines.append(f"| {model} | {bits} | {kind} | {shown} | {peer.name} | {best.name} | {found} |")
    return "\n".join(lines)


def lowest(candidates: list[Group], kind: str, measure: str) -> Group:
    return min(candidates, key=lambda group: group.mean(kind, measure))
