"""What was measured as tables, and beside each line what was wanted."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import profile_flips, profile_quality
from .rows import Row

OVER_NBITS, SHARE_OF_INTEGER, AVX2_OVER_NBITS = 5.0, 0.6, 1.0
OVER_PEER = 0.5
TIMES_PEER = {64: 6.0, 1024: 25.0}
OVER_BOUND = 1.6
POINTS = 0.5
OTHERS = "cores busy with other programs"
Lines = Iterator[str]


def verdict(value: float, target: float, *, least: bool) -> str:
    """Whether a target is met, and by what factor it is not."""
    met = value >= target if least else value <= target
    factor = target / value if least else value / target
    return "met" if met else f"missed by {factor:.2f}x"


def markdown(content: dict[str, Any]) -> str:
    """Of all that a file has, section by section."""
    makers = {"linear": linear, "forward": forward, "tokens": tokens, "step": step}
    sections = content["rows"]
    tables = [machine(content), *(makers[name](sections[name]) for name in makers if sections.get(name))]
    if sections.get("quality"):
        tables.append(quality(sections["quality"], sections.get("flips", {})))
    return "\n\n".join("\n".join(table) for table in tables)


def machine(content: dict[str, Any]) -> Lines:
    """The median of what was measured around the rows, and its range."""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    yield f"{content['machine']}, {content['simd']}, {content['system']}, {versions}, {content['date']}"
    yield ""
    yield from header("threads", "int8 GOP/s, 32 rows", "128 rows", "fp32, 32 rows", "128 rows", "GB/s", "of rows")
    found: dict[int, list[dict[str, Any]]] = {}
    for rows in content["rows"].values():
        for row in rows.values():
            if "peaks" in row:
                found.setdefault(row["threads"], []).append(row["peaks"])
    for threads, peaks in sorted(found.items()):
        products = [[p[kind][rows]["value"] for p in peaks] for kind in ("int8", "fp32") for rows in ("32", "128")]
        bandwidth = [p["bandwidth"]["value"] for p in peaks]
        yield line(threads, *(ranged(values) for values in (*products, bandwidth)), len(peaks))


def ranged(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def line(*cells: object) -> str:
    return "| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"


def others(row: Row) -> str:
    """Where this is not near zero, only what ran on one thread can be trusted: that is timed by the processor's clock."""
    cores = row.get("other_programs")
    return "" if cores is None else f"{cores:.1f}"


def header(*cells: str) -> Lines:
    yield line(*cells)
    yield line(*["---"] * len(cells))


def linear(rows: dict[str, Row]) -> Lines:
    yield from header("shape", "threads", "rows", "weights", "variant", "GOP/s", "x MatMulNBits", "", "of integer", "")
    for row in rows.values():
        for one in row["settings"]:
            if not one["name"].startswith("q"):
                continue
            is_best, is_w4a8 = row["variant"] == "best", one["name"].startswith("q4")
            target = OVER_NBITS if is_best else AVX2_OVER_NBITS
            wanted = verdict(one["over_nbits"], target, least=True) if is_w4a8 else ""
            peak = verdict(one["over_integer_only"], SHARE_OF_INTEGER, least=True) if is_best and is_w4a8 else ""
            yield line(
                row["shape"], row["threads"], one["rows"], one["name"], row["simd"], float(one["gops"]),
                float(one["over_nbits"]), wanted, float(one["over_integer_only"]), peak,
            )  # fmt: skip


def forward(rows: dict[str, Row]) -> Lines:
    yield from header(
        "model", "profile", "positions", "threads", "s, logits of a block", "s, all logits", "peer s", "x peer", "",
        "x peer, all logits", "published, scaled s", "x published", OTHERS,
    )  # fmt: skip
    for row in rows.values():
        took, published, ratio = row["seconds"], row["published_scaled"], row.get("over_peer")
        yield line(
            row["model"], row["profile"], row["positions"], row["threads"], took["block_logits"], took["all_logits"],
            took.get("peer", ""), *(
                (ratio["block_logits"], verdict(ratio["block_logits"], OVER_PEER, least=False), ratio["all_logits"])
                if ratio else ("", "", "")
            ),
            "" if published is None else published, "" if published is None else took["block_logits"] / published,
            others(row),
        )  # fmt: skip


def tokens(rows: dict[str, Row]) -> Lines:
    yield from header(
        "model",
        "prompt",
        "threads",
        "steps",
        "tokens/s",
        "x peer",
        "",
        "x published, scaled",
        "x own without a cache",
        OTHERS,
    )
    for row in rows.values():
        for steps, speed in row["tokens_per_s"].items():
            times = row["times_peer"].get(steps)
            yield line(
                row["model"], row["prompt"], row["threads"], steps, speed,
                "" if times is None else times,
                "" if times is None else verdict(times, TIMES_PEER[row["prompt"]], least=True),
                row.get("times_published", {}).get(steps, ""), row["times_no_cache"][steps], others(row),
            )  # fmt: skip


def step(rows: dict[str, Row]) -> Lines:
    parts = ("linear", "attention", "head", "glue", "runtime", "binding", "scoring", "loop")
    yield from header("model", "profile", "prompt", "threads", "ms", "bound ms", "x bound", "", *parts, OTHERS)
    for row in rows.values():
        yield line(
            row["model"], row["profile"], row["prompt"], row["threads"], 1e3 * row["seconds"],
            1e3 * row["bound_seconds"], row["over_bound"], verdict(row["over_bound"], OVER_BOUND, least=False),
            *(1e3 * row["roofline"]["parts"].get(part, 0.0) for part in parts), others(row),
        )  # fmt: skip


def quality(rows: dict[str, Row], flips: dict[str, Row]) -> Lines:
    """Differences in points, each with its standard error; less and more than the weight-only twin."""
    yield from header(
        "model", "weights", "profile", "exact match %", "less than float", "less than twin", "flips %",
        "more than twin", "flips against twin %", "NLL", "more than twin", "",
    )  # fmt: skip
    twins = {weights.name: weights.twin for weights in profile_quality.WEIGHTS}
    for key, row in rows.items():
        model, weights, *rest = key.split("/")
        if not rest:
            continue
        twin = f"{model}/{weights}/{twins[weights]}"
        right, nll = profile_quality.is_right(row), np.array(row["masked_nll"])
        source, other = (profile_quality.is_right(rows[name]) for name in (f"{model}/fp32", twin))
        less = profile_quality.paired(other, right)
        more = profile_flips.more(flips[key], flips[twin]) if {key, twin} <= set(flips) else None
        yield line(
            model, weights, rest[0], 100 * float(right.mean()), points(*profile_quality.paired(source, right)),
            points(*less), *(("", "", "") if more is None else flip_cells(flips[key], more)), float(nll.mean()),
            "{:.5f} ± {:.5f}".format(*profile_quality.paired(nll, np.array(rows[twin]["masked_nll"]))),
            within(100 * max(less[0], 0.0 if more is None else more[0])),
        )  # fmt: skip


def flip_cells(row: Row, more: tuple[float, float]) -> tuple[float, str, float]:
    return 100 * profile_flips.rate(row, "source")[0], points(*more), 100 * profile_flips.rate(row, "twin")[0]


def within(lost: float) -> str:
    return "met" if lost <= POINTS else f"missed by {lost - POINTS:.2f} points"


def points(mean: float, error: float) -> str:
    return f"{100 * mean:.2f} ± {100 * error:.2f}"
