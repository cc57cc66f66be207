"""A roofline of a bundle on this machine: peaks, where the time of each pass goes, and what it reaches of the peaks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from dlm_edge.bundle import Bundle
from dlm_edge.machine_peaks import PeakMeter, Peaks
from dlm_edge.memory import available_bytes
from dlm_edge.roofline.host import HostTimes, measure_host
from dlm_edge.roofline.node_kinds import KINDS
from dlm_edge.roofline.passes import STEP, PassTimer, Timing, planned_passes
from dlm_edge.roofline.profile import RunProfile, end_profile
from dlm_edge.roofline.timed_model import TimedStepModel
from dlm_edge.roofline.work import ModelWork, Work
from dlm_edge.runtime import Engine
from dlm_edge.runtime.ort_step_model import OrtStepModel
from dlm_edge.runtime.session import OpenSession, open_session

PEAK_ROUNDS = 4  # before the passes, and as many behind them
PASSES_S = 5.0
Entry = TypeVar("Entry")
ROOM = 2  # weights in memory once more, and what ONNX Runtime packs of them


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What a part does, and where that lies under the roof. Work per second in 10^9; shares are of the measured peaks.

    The compute peak is that of int8 for products that round to int8, of fp32 for all others. `roof` is what takes longer
    at its peak, and `roof_share` that time over the measured one.
    """

    operations: int
    bytes: float
    operations_per_byte: float
    gflop_s: float
    gbyte_s: float
    compute_peak: float
    compute_share: float
    bandwidth_share: float
    roof: Literal["compute", "bandwidth"]
    roof_share: float


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """`seconds` of one pass, and their share of it; `place` is None where there is nothing to count."""

    name: str
    seconds: float
    share: float
    place: Place | None = None


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of pass. `seconds`: the sum of its parts and `unattributed_seconds`, which are negative where profiling or noise
    made the parts longer than the whole; `profiled_seconds`: what the pass took with the profiler on."""

    name: str
    rows: int
    prefix_tokens: int
    logit_rows: int
    rounds: int
    seconds: float
    spread: float  # the slowest over the fastest round
    parts: list[Part]
    unattributed_seconds: float
    profiled_seconds: float
    whole: Place
    linear_seconds: dict[str, float]  # by role


class Roofline(msgspec.Struct, frozen=True, kw_only=True):
    peaks: Peaks
    phases: list[Phase]
    host: HostTimes


def measure_roofline(
    engine: Engine,
    bundle: Bundle,
    *,
    threads: int | None = None,
    prompt_tokens: int = 512,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Roofline | str:
    """Of an open engine with no job in flight; `settings` of its own request say how it samples. Opens the bundle once more
    to profile it. The answer is a line of text where this cannot be measured: why."""
    reason = why_not(engine)
    if reason:
        return reason
    say("roofline: peaks of this machine")
    meter = PeakMeter(threads)
    meter.measure(PEAK_ROUNDS)
    manifest, parts = bundle.manifest, engine.parts
    passes = planned_passes(parts.spec, manifest.cache_layout, prompt_tokens)
    length, block = max(at.start + at.rows for at in passes.values()), parts.spec.conventions.block_length
    text = random_text(engine, length, seed)
    shared = parts.model
    assert isinstance(shared, OrtStepModel), "an engine of a bundle"
    opened = OpenSession(shared.session, shared.ort, shared.device, parts.native_operators)
    arguments = parts.spec, manifest.cache_layout, manifest.cache_group
    with tempfile.TemporaryDirectory() as folder:
        say("roofline: opening the bundle again, to profile it")
        prefix = Path(folder) / "profile"
        watched = open_session(bundle.graph_path, device="cpu", threads=threads, target=manifest.target, profile=prefix)
        timed, profiled = TimedStepModel(opened, *arguments), TimedStepModel(watched, *arguments)
        say(f"roofline: {', '.join(passes)}")
        timings = PassTimer(timed, profiled, text).measure(passes, PASSES_S)
        runs = end_profile(watched.session, native_operators=watched.native_operators)
    profiled.discard()
    timed.discard()
    host = measure_host(engine, timed, text[: max(length - block, 1)].tolist(), block, settings or {})
    meter.measure(PEAK_ROUNDS)
    peaks, work = meter.peaks(), ModelWork.of(manifest)
    phases = [make_phase(name, timing, runs, host, work, peaks) for name, timing in timings.items()]
    return Roofline(peaks=peaks, phases=phases, host=host)


def why_not(engine: Engine) -> str:
    if engine.device != "cpu":
        return f"no roofline on {engine.device}: peaks and profiles are those of the CPU"
    needed, free = ROOM * engine.parts.weight_bytes, available_bytes()
    if free is not None and free < needed:
        return (
            f"no roofline: it opens the bundle once more, which takes {needed >> 20} MiB, and {free >> 20} MiB are free"
        )
    return ""


def random_text(engine: Engine, length: int, seed: int) -> NDArray[np.int64]:
    conventions = engine.spec.conventions
    usable = np.setdiff1d(np.arange(engine.spec.vocab_size), [conventions.mask_id, *conventions.stop_ids])
    return np.random.default_rng(seed).choice(usable, length)


def make_phase(
    name: str, timing: Timing, runs: Sequence[RunProfile], host: HostTimes, work: ModelWork, peaks: Peaks
) -> Phase:
    """Parts are means over the middle half of the profiled runs, and the whole over that of the others: so the parts of a
    run that was interrupted add up, too. What they do not add up to is the rest."""
    calls = sorted(zip(timing.profiled, (runs[i] for i in timing.runs), strict=True), key=lambda call: call[0])
    typical = middle_half(calls)
    profiles = [profile for _, profile in typical]
    seconds: dict[str, float] = {kind: fmean(p.kinds.get(kind, 0.0) for p in profiles) for kind in KINDS}
    if not seconds["other"]:
        del seconds["other"]
    seconds["binding"] = fmean(wall - profile.seconds for wall, profile in typical)
    total = fmean(middle_half(sorted(timing.wall)))
    # Between its nodes a profiled run writes events: what a run spends there is taken from the others.
    seconds["runtime"] = max(total - sum(seconds.values()), 0.0)
    for part, found in (("store", timing.store), ("scoring", timing.scoring)):
        if found:
            seconds[part] = fmean(middle_half(sorted(found)))
            total += seconds[part]
    if timing.scoring:
        seconds["loop"] = host.loop
        total += seconds["loop"]
    done, roles = work.of_pass(timing.at), sorted({role for profile in profiles for role in profile.roles})
    whole = Work()
    for each in done.values():
        whole.add(each)
    return Phase(
        name=name,
        rows=timing.at.rows,
        prefix_tokens=timing.at.prefix,
        logit_rows=timing.at.logit_rows,
        rounds=len(timing.wall),
        seconds=total,
        spread=max(timing.wall) / min(timing.wall),
        parts=[
            Part(name=part, seconds=s, share=s / total, place=place_of(done.get(part, Work()), s, peaks))
            for part, s in seconds.items()
        ],
        unattributed_seconds=total - sum(seconds.values()),
        profiled_seconds=fmean(wall for wall, _ in typical),
        whole=require(place_of(whole, total, peaks)),
        linear_seconds={role: fmean(p.roles.get(role, 0.0) for p in profiles) for role in roles},
    )


def middle_half(ordered: Sequence[Entry]) -> Sequence[Entry]:
    """Without the first and the last quarter; of fewer than four, all of them."""
    cut = len(ordered) // 4
    return ordered[cut : len(ordered) - cut]


def place_of(work: Work, seconds: float, peaks: Peaks) -> Place | None:
    if not work.operations or seconds <= 0:
        return None
    giga = 1e9
    in_float = work.operations - work.integer
    compute_s = (work.integer / peaks.gflop_s("int8") + in_float / peaks.gflop_s("fp32")) / giga
    memory_s = work.bytes / peaks.bandwidth.value / giga
    return Place(
        operations=work.operations,
        bytes=work.bytes,
        operations_per_byte=work.operations / work.bytes,
        gflop_s=work.operations / seconds / giga,
        gbyte_s=work.bytes / seconds / giga,
        compute_peak=work.operations / compute_s / giga,
        compute_share=compute_s / seconds,
        bandwidth_share=memory_s / seconds,
        roof="compute" if compute_s >= memory_s else "bandwidth",
        roof_share=max(compute_s, memory_s) / seconds,
    )


def require(place: Place | None) -> Place:
    assert place is not None, "every pass multiplies something"
    return place


def step_seconds(roofline: Roofline) -> dict[str, float]:
    """Of one denoising step: the whole as "step", and its parts as "step.linear" and so on, which add up to it."""
    phase = next(phase for phase in roofline.phases if phase.name == STEP)
    parts = {f"step.{part.name}": part.seconds for part in phase.parts}
    return {"step": phase.seconds} | parts | {"step.unattributed": phase.unattributed_seconds}
