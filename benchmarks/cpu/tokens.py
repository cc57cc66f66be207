"""Whole requests with a cache against steps over the whole text: the peer's, and our own without a cache.

New tokens over the time of the request, prompt and refreshes included; of the others over the number of steps times
their forward of that length, without the time they take to choose tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import product
from typing import Any

from dlm_edge.runtime import Engine

from .models import BLOCK_LENGTH, prepare
from .peer import Peer, scaled
from .plan import Plan
from .rows import Rows
from .timing import Timed, Times, in_turns, over, seconds, spread, timed, with_peaks
from .whole import random_ids, whole_pass

SECTION = "tokens"
NEW_TOKENS = 128
PROMPTS = (64, 1024)
STEPS = (32, 128)  # of the whole request
PROFILE, QUANTIZATION = "w4a8", "q4_0"


def run(rows: Rows, plan: Plan, say: Callable[[str], None]) -> None:
    for prompt, model, n_threads in product(plan.prompts, plan.models, plan.threads):
        key = f"{model}/{prompt}/{n_threads}"
        if not rows.lacks(SECTION, key):
            continue
        say(f"{SECTION}: {key}")
        bundle = prepare(plan.folder, model, PROFILE, say)
        with ExitStack() as stack:
            engine = stack.enter_context(Engine.open(bundle.path, threads=n_threads))
            peer = stack.enter_context(Peer(plan.peer, model, QUANTIZATION)) if plan.peer else None
            pids = [peer.process.pid] if peer else []
            rounds = plan.rounds_of(prompt + NEW_TOKENS)
            row = with_peaks(n_threads, partial(measure, engine, prompt, n_threads, rounds, peer), *pids)
        published = scaled(model, QUANTIZATION, prompt + NEW_TOKENS, n_threads, row["peaks"])
        row |= {"model": model, "published_scaled": published}
        if published is not None:
            ours = {steps: row["seconds"][f"{steps}_steps"] for steps in STEPS}
            row["times_published"] = {str(steps): steps * published / ours[steps] for steps in STEPS}
        rows.add(SECTION, key, row)


def measure(engine: Engine, prompt: int, threads: int, rounds: int, peer: Peer | None) -> dict[str, Any]:
    ids, length = random_ids(engine, prompt).tolist(), prompt + NEW_TOKENS
    whole = whole_pass(engine, length, all_logits=False)
    runs: dict[str, Timed] = {f"{steps}_steps": partial(request, engine, ids, steps) for steps in STEPS}
    runs["no_cache"] = lambda: timed(whole)
    if peer is not None:
        runs["peer"] = lambda: peer.forward(length, threads)
    taken = in_turns(runs, rounds, ("no_cache",))
    row: dict[str, Any] = {
        "prompt": prompt, "new_tokens": NEW_TOKENS, "profile": PROFILE, "threads": threads, "rounds": rounds,
        "seconds": {name: seconds(times, threads) for name, times in taken.items()},
        "taken": {name: spread(times) for name, times in taken.items()},
        "tokens_per_s": {}, "times_no_cache": {}, "times_peer": {},
    }  # fmt: skip
    for steps in STEPS:
        ours = f"{steps}_steps"
        row["tokens_per_s"][str(steps)] = NEW_TOKENS / row["seconds"][ours]
        row["times_no_cache"][str(steps)] = steps * over(taken, "no_cache", ours, threads)
        if peer is not None:
            row["times_peer"][str(steps)] = steps * over(taken, "peer", ours, threads)
    return row


def request(engine: Engine, prompt: list[int], steps: int) -> Times:
    """A text of exactly NEW_TOKENS, with the cache whose steps run on one block."""

    def generate() -> None:
        result = engine.generate(
            prompt, max_new_tokens=NEW_TOKENS, sampler="static", steps=steps, block_length=BLOCK_LENGTH, cache="dual",
            stop_at_eos=False,
        )  # fmt: skip
        assert (result.new_tokens, result.steps) == (NEW_TOKENS, steps), result

    return timed(generate)
