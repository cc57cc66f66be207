"""`benchmark`: how fast a bundle runs here, with the steps it took beside every speed."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dlm_edge import __version__
from dlm_edge.artifacts import resolve_bundle
from dlm_edge.bundle import open_bundle
from dlm_edge.decoding import decoding_settings, shown
from dlm_edge.machine import processor
from dlm_edge.memory import peak_rss_bytes
from dlm_edge.roofline import Roofline, measure_roofline
from dlm_edge.roofline.measure import step_seconds
from dlm_edge.runtime import Engine, Result


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of `dlm-edge bench --json`. `spread` is the slowest over the fastest repeat.

    `time_by_phase`: seconds of all timed requests in prefill and in steps; with a roofline also seconds of one step over the
    longest prompt, whose parts "step.linear" and so on add up to "step". `notes`: what was not measured, and why.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    setting: dict[str, Any]
    rows: list[dict[str, Any]]
    time_by_phase: dict[str, float]
    roofline: Roofline | None
    notes: list[str]


def benchmark(
    artefact: str | Path,
    *,
    prompt_tokens: Sequence[int] = (64, 512),
    new_tokens: int = 64,
    repeats: int = 3,
    threads: int | None = None,
    sampler: str = "threshold",
    options: Mapping[str, Any] | None = None,
    attention: Sequence[Mapping[str, Any]] = ({"attention": "dense"},),
    seed: int = 0,
    roofline: bool = True,
    progress: Callable[[str], None] | None = None,
) -> BenchReport:
    """Generate exactly `new_tokens` after random prompts of each length; one warm-up, then the median of `repeats`.

    `options`: the sampler's own settings; `attention`: settings of each policy to be timed, such as {"attention": "losa", "budget": 256}; a row for each.
    `roofline`: attribute the time of a pass, and compare it with the peaks of this machine (dlm_edge/roofline).

    Random prompts say nothing about quality, and how many tokens a step commits on them is not what real text gives:
    compare `seconds_per_forward`, or use `sampler="static"`.
    """
    import onnxruntime

    say = progress or (lambda _: None)
    rng = np.random.default_rng(seed)
    decoding = decoding_settings(sampler, options or {})
    rows = []
    phases: dict[str, float] = {"prefill": 0.0, "steps": 0.0}
    answer: Roofline | str = ""
    bundle = open_bundle(resolve_bundle(artefact))
    with Engine.open(bundle.path, threads=threads) as engine:
        usable = np.setdiff1d(np.arange(engine.spec.vocab_size), reserved_ids(engine))
        for n in prompt_tokens:
            prompt = rng.choice(usable, n).tolist()
            results: list[list[Result]] = [[] for _ in attention]
            for repeat in range(repeats + 1):
                for policy, found in zip(attention, results, strict=True):  # in turns: a busy moment hits all of them
                    said = f"repeat {repeat} of {repeats}" if repeat else "warm-up"
                    say(f"prompt {n}, {policy['attention']}, {said}")
                    engine.forget_prompt()  # prefill is part of what is measured
                    request = decoding | dict(policy)
                    found.append(engine.generate(prompt, max_new_tokens=new_tokens, stop_at_eos=False, **request))
            for policy, (_, *timed) in zip(attention, results, strict=True):
                rows.append(dict(policy) | summarise(n, new_tokens, timed))
                phases["prefill"] += sum(r.prefill_seconds for r in timed)
                phases["steps"] += sum(r.seconds - r.prefill_seconds for r in timed)
        if roofline:
            answer = measure_roofline(
                engine,
                bundle,
                threads=threads,
                prompt_tokens=max(prompt_tokens),
                settings=decoding,
                seed=seed,
                say=say,
            )
    measured = answer if isinstance(answer, Roofline) else None
    if measured is not None:
        phases |= step_seconds(measured)
    return BenchReport(
        machine={"processor": processor(), "system": platform.platform(), "threads": threads},
        versions={"dlm-edge": __version__, "onnxruntime": onnxruntime.__version__, "python": platform.python_version()},
        setting={"sampler": shown(decoding), "repeats": repeats},
        rows=rows,
        time_by_phase=phases,
        roofline=measured,
        notes=[answer] if isinstance(answer, str) and answer else [],
    )


def reserved_ids(engine: Engine) -> list[int]:
    return [engine.spec.conventions.mask_id, *engine.spec.conventions.stop_ids]


def summarise(prompt_tokens: int, new_tokens: int, results: Sequence[Result]) -> dict[str, Any]:
    seconds = [r.seconds for r in results]
    # Prefill is timed by itself; what is left runs one pass per step, and where a step does not store the block before it, a pass for that.
    per_forward = [(r.seconds - r.prefill_seconds) / max(r.forward_passes - r.prefill_passes, 1) for r in results]
    return {
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "prefill_seconds": statistics.median(r.prefill_seconds for r in results),
        "seconds_per_forward": statistics.median(per_forward),
        "effective_tokens_per_s": new_tokens / statistics.median(seconds),
        "steps_per_token": statistics.median(r.steps_per_token or 0.0 for r in results),
        "steps_per_block": statistics.median(r.steps / max(r.blocks, 1) for r in results),
        "density": statistics.median(r.density for r in results),
        "active_rows": statistics.median(r.active_rows for r in results),
        "pages_read": statistics.median(r.pages_read for r in results),
        "peak_rss_bytes": peak_rss_bytes(),
        "spread": max(seconds) / min(seconds),
    }
