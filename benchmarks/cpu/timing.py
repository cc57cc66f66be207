"""Times of things that are compared: in turns, on two clocks, with the machine's peaks around them.

With one thread the processor's clock says what a machine without other programs would have taken; with more only the wall
clock does, and a ratio is then only as good as both met the same other work, for which they take turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from .peaks import Meter, OtherPrograms

PEAK_ROUNDS = 3  # before a row, and as many behind it


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one run: of the wall clock, and of the processor for all threads of the process."""

    wall: float
    processor: float


Timed = Callable[[], Times]
Taken = Mapping[str, list[Times]]


def timed(run: Callable[[], object]) -> Times:
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return Times(time.perf_counter() - wall, time.process_time() - processor)


def in_turns(runs: Mapping[str, Timed], rounds: int, warm: Sequence[str] = ()) -> dict[str, list[Times]]:
    """One untimed run of those that are to be warm, then `rounds` of all."""
    for name in warm:
        runs[name]()
    found: dict[str, list[Times]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run())
    return found


def seconds(taken: list[Times], threads: int) -> float:
    """The median, on the clock that counts for so many threads."""
    return statistics.median(t.processor if threads == 1 else t.wall for t in taken)


def over(taken: Taken, one: str, other: str, threads: int) -> float:
    """How many times as long `one` takes as `other`: the median of the ratios within a round."""
    pairs = zip(taken[one], taken[other], strict=True)
    return statistics.median(a.processor / b.processor if threads == 1 else a.wall / b.wall for a, b in pairs)


def spread(taken: list[Times]) -> dict[str, Any]:
    """As it is stored."""
    wall, processor = [t.wall for t in taken], [t.processor for t in taken]
    return {
        "seconds": statistics.median(wall),
        "processor_seconds": statistics.median(processor),
        "runs": [[round(t.wall, 6), round(t.processor, 6)] for t in taken],
    }


def with_peaks(threads: int, measure: Callable[[], dict[str, Any]], *children: int) -> dict[str, Any]:
    """The row that `measure` gives; under `peaks` what the machine reached right before and behind it, and under
    `other_programs` how many cores these kept busy meanwhile. `children`: processes that take part."""
    meter, others = Meter(threads), OtherPrograms(*children)
    meter.measure(PEAK_ROUNDS)
    row = measure()
    meter.measure(PEAK_ROUNDS)
    return row | {"peaks": msgspec.to_builtins(meter.peaks()), "other_programs": others.cores()}
