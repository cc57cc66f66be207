"""The peer's work: a pass over the whole text without a cache, with the logits that we need and with all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from dlm_edge.runtime import Engine

from .models import prepare
from .peer import Peer, scaled
from .plan import Plan
from .rows import Rows
from .timing import Timed, in_turns, over, seconds, spread, timed, with_peaks
from .whole import whole_pass

SECTION = "forward"


@dataclass(frozen=True, slots=True)
class Case:
    model: str
    profile: str
    positions: int
    quantization: str  # the peer's


CASES = (
    Case("dream-0.5b", "w4a8", 192, "q4_0"),
    Case("dream-0.5b", "w4a8-blocks", 192, "q4_0"),
    Case("dream-1.5b", "w4a8", 192, "q4_0"),
    Case("dream-1.5b", "w8a8-qlinear", 192, "q8_0"),
    Case("llada-0.8b", "w4a8", 192, "q4_0"),
    Case("dream-0.5b", "w4a8", 1152, "q4_0"),
)


def run(rows: Rows, plan: Plan, say: Callable[[str], None]) -> None:
    for case, n_threads in planned(plan):
        key = f"{case.model}/{case.profile}/{case.positions}/{n_threads}"
        if rows.lacks(SECTION, key):
            say(f"{SECTION}: {key}")
            bundle = prepare(plan.folder, case.model, case.profile, say)
            with ExitStack() as stack:
                engine = stack.enter_context(Engine.open(bundle.path, threads=n_threads))
                peer = stack.enter_context(Peer(plan.peer, case.model, case.quantization)) if plan.peer else None
                pids = [peer.process.pid] if peer else []
                row = with_peaks(
                    n_threads, partial(measure, case, engine, n_threads, plan.rounds_of(case.positions), peer), *pids
                )
            published = scaled(case.model, case.quantization, case.positions, n_threads, row["peaks"])
            rows.add(SECTION, key, row | {"published_scaled": published})


def planned(plan: Plan) -> Iterator[tuple[Case, int]]:
    for case in CASES:
        for n_threads in plan.threads:
            if case.model in plan.models and case.positions in plan.positions:
                yield case, n_threads


def measure(case: Case, engine: Engine, threads: int, rounds: int, peer: Peer | None) -> dict[str, Any]:
    all_logits = whole_pass(engine, case.positions, all_logits=True)
    of_block = whole_pass(engine, case.positions, all_logits=False)
    runs: dict[str, Timed] = {"block_logits": lambda: timed(of_block), "all_logits": lambda: timed(all_logits)}
    if peer is not None:
        runs["peer"] = lambda: peer.forward(case.positions, threads)
        runs["peer_without_head"] = lambda: peer.forward(case.positions, threads, "none")
    taken = in_turns(runs, rounds, ("block_logits", "all_logits"))
    row: dict[str, Any] = {
        "model": case.model, "profile": case.profile, "positions": case.positions, "threads": threads,
        "rounds": rounds, "block_logits": spread(taken["block_logits"]), "all_logits": spread(taken["all_logits"]),
        "seconds": {name: seconds(times, threads) for name, times in taken.items()},
    }  # fmt: skip
    if peer is not None:
        row |= {"peer": spread(taken["peer"]), "peer_without_head": spread(taken["peer_without_head"])}
        row["quantization"], row["peer_about"] = case.quantization, peer.about
        row["over_peer"] = {name: over(taken, name, "peer", threads) for name in ("block_logits", "all_logits")}
    return row
