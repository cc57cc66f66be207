"""Device time of launches, without the host's: a CUDA graph of many calls, replayed between two events."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

WARM_UP, REPLAYS = 3, 15


def seconds_per_call(calls: Sequence[Callable[[], object]]) -> tuple[float, float, float]:
    """Median, least and largest over the replays, of one call out of `calls`, which run one after the other.

    Several calls on different data keep a small problem out of the device's cache, as the other layers of a model do.
    """
    for _ in range(WARM_UP):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    found = sorted(_between_events(graph.replay) / len(calls) for _ in range(REPLAYS))
    return statistics.median(found), found[0], found[-1]


def seconds_of_session_runs(run: Callable[[], object], calls: int = 20) -> tuple[float, float, float]:
    """The same for ONNX Runtime, whose launches are not captured here: back-to-back runs, host time included."""
    for _ in range(WARM_UP):
        run()
    torch.cuda.synchronize()

    def several() -> None:
        for _ in range(calls):
            run()

    found = sorted(_between_events(several) / calls for _ in range(5))
    return statistics.median(found), found[0], found[-1]


def copy_bandwidth(n_bytes: int = 1 << 30) -> float:
    """Bytes per second that a copy of `n_bytes` reads and writes."""
    source = torch.empty(n_bytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds, _, _ = seconds_per_call([lambda: target.copy_(source)])
    return 2 * n_bytes / seconds


def _between_events(work: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
