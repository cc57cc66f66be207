"""The figures of a roofline as tables of text, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from dlm_edge.machine_peaks import Peak
from dlm_edge.roofline.measure import Phase, Place, Roofline

Table = list[list[str]]
TIME_PARTS = ("linear", "attention", "head", "glue", "runtime", "binding", "store", "scoring", "loop", "other")


def peak_rows(roofline: Roofline) -> Table:
    """With the spread: slowest over fastest."""
    peaks = roofline.peaks
    rows = [["peak", "rows", "", "spread"]]
    for kind, unit, found in (("int8", "GOP/s", peaks.int8), ("fp32", "GFLOP/s", peaks.fp32)):
        rows += [[f"{kind} product", n, *amount(peak, unit)] for n, peak in found.items()]
    return [*rows, ["reading memory", "", *amount(peaks.bandwidth, "GB/s")]]


def amount(peak: Peak, unit: str) -> list[str]:
    return [f"{peak.value:.1f} {unit}", f"{peak.spread:.2f}"]


def time_rows(roofline: Roofline) -> Table:
    """Milliseconds of each pass, a column for each of its parts."""
    used = [name for name in TIME_PARTS if any(part.name == name for phase in roofline.phases for part in phase.parts)]
    rows = [["pass", "rows", "prefix", "ms", *used, "rest", "spread"]]
    for phase in roofline.phases:
        seconds = {part.name: part.seconds for part in phase.parts}
        parts = [milliseconds(seconds[name]) if name in seconds else "-" for name in used]
        numbers = [str(phase.rows), str(phase.prefix_tokens), milliseconds(phase.seconds)]
        rest = milliseconds(phase.unattributed_seconds)
        rows.append([phase.name, *numbers, *parts, rest, f"{phase.spread:.2f}"])
    return rows


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.2f}"


def place_rows(roofline: Roofline) -> Table:
    """What each part does, what it reaches, and its share of what the machine can do."""
    rows = [["pass, part", "GFLOP", "MB", "FLOP/B", "GFLOP/s", "of peak", "GB/s", "of peak", "roof", "of roof"]]
    for phase in roofline.phases:
        for name, place in places(phase):
            rows.append([f"{phase.name}, {name}", *place_cells(place)])
    return rows


def places(phase: Phase) -> Sequence[tuple[str, Place]]:
    return [(part.name, part.place) for part in phase.parts if part.place is not None] + [("whole", phase.whole)]


def place_cells(place: Place) -> list[str]:
    return [
        f"{place.operations / 1e9:.3g}",
        f"{place.bytes / 1e6:.3g}",
        f"{place.operations_per_byte:.3g}",
        f"{place.gflop_s:.3g}",
        f"{place.compute_share:.0%}",
        f"{place.gbyte_s:.3g}",
        f"{place.bandwidth_share:.0%}",
        place.roof,
        f"{place.roof_share:.0%}",
    ]


def role_rows(roofline: Roofline) -> Table:
    """Milliseconds of the linear layers by role."""
    roles = list(dict.fromkeys(role for phase in roofline.phases for role in phase.linear_seconds))
    rows = [["linear", *roles]]
    for phase in roofline.phases:
        rows.append([phase.name, *(milliseconds(phase.linear_seconds.get(role, 0.0)) for role in roles)])
    return rows
