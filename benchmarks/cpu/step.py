"""A whole step of one block, against the time its matrix products and its bytes would take at the measured peaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import msgspec

from dlm_edge.bundle import Bundle
from dlm_edge.machine_peaks import Peaks
from dlm_edge.roofline import Roofline, measure_roofline
from dlm_edge.roofline.passes import STEP
from dlm_edge.runtime import Engine

from .bound import bound_of
from .models import BLOCK_LENGTH, prepare
from .plan import Plan
from .rows import Rows
from .timing import in_turns, spread, timed, with_peaks
from .whole import block_step

SECTION = "step"
PROFILES = ("w4a8", "w8a8-qlinear")
ROUNDS = 15
SAMPLER = {"sampler": "static", "sampler_options": {"steps": BLOCK_LENGTH}}


def run(rows: Rows, plan: Plan, models: Sequence[str], say: Callable[[str], None]) -> None:
    for model, profile, prompt, n_threads in product(models, PROFILES, plan.prompts, plan.threads):
        key = f"{model}/{profile}/{prompt}/{n_threads}"
        if rows.lacks(SECTION, key):
            say(f"{SECTION}: {key}")
            bundle = prepare(plan.folder, model, profile, say)
            rows.add(SECTION, key, {"model": model} | measure(bundle, profile, prompt, n_threads, say))


def measure(bundle: Bundle, profile: str, prompt: int, threads: int, say: Callable[[str], None]) -> dict[str, Any]:
    """`seconds` and `bound` are on the clock that counts, the breakdown of `roofline` on the wall clock."""
    with Engine.open(bundle.path, threads=threads) as engine:
        run = block_step(engine, prompt)
        row = with_peaks(threads, lambda: {"runs": spread(in_turns({"": lambda: timed(run)}, ROUNDS, [""])[""])})
        found = measure_roofline(engine, bundle, threads=threads, prompt_tokens=prompt, settings=SAMPLER, say=say)
    if not isinstance(found, Roofline):
        raise SystemExit(found)
    phase = next(phase for phase in found.phases if phase.name == STEP)
    bounds = bound_of(bundle.manifest, prompt, msgspec.convert(row["peaks"], Peaks))
    bound = sum(bounds["products"].values()) + bounds["bytes"]
    seconds = row["runs"]["processor_seconds" if threads == 1 else "seconds"] + found.host.loop
    return row | {
        "profile": profile, "prompt": prompt, "threads": threads, "seconds": seconds, "loop_seconds": found.host.loop,
        "bound": bounds, "bound_seconds": bound, "over_bound": seconds / bound,
        "roofline": {
            "seconds": phase.seconds, "spread": phase.spread, "parts": {part.name: part.seconds for part in phase.parts},
            "unattributed_seconds": phase.unattributed_seconds, "linear_seconds": phase.linear_seconds,
            "peaks": msgspec.to_builtins(found.peaks),
        },
    }  # fmt: skip
