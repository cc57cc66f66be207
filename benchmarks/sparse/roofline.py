"""What a step of attention cannot be faster than: the bytes it touches, and the multiplications it makes.

Both are counted from shapes and from what was selected, and both speeds are measured in the same run with the same
number of threads: bandwidth over buffers far larger than the last-level cache, as the caches are flushed before each
step, and arithmetic as ONNX Runtime's MatMul of large matrices reaches it.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import helper
from sparse.layers import Layers, make_model, open_session

BUFFER = 64 << 20  # bytes of each thread
MATRIX = 1024
FLOAT = 4


@dataclass(frozen=True, slots=True)
class Machine:
    bandwidth: float  # bytes a second that are read
    flops: float  # float32 operations a second


@dataclass(frozen=True, slots=True)
class Work:
    """Of one layer. page_bytes: keys and values (with their scales) of selected pages, read once for each K/V head, and
    page bounds or masses if they are read. state_bytes: queries and window, read; last queries and stored results of
    the prefix, read and written where that is due; the output, written. flops: two for each product of scores and
    outputs."""

    page_bytes: float
    state_bytes: float
    flops: float


def work_of(layers: Layers, *, reads_masses: bool) -> Work:
    """Of the step that ran last."""
    shape = layers.shape
    active, pages, valid, bounds = layers.stats.tolist()  # the first three summed over the K/V heads
    group, row = shape.n_heads // shape.n_kv, FLOAT * shape.dim
    page_bytes = pages * layers.bytes_per_page + bounds * layers.bounds_bytes + reads_masses * valid * FLOAT
    all_rows, active_rows, window = shape.n_heads * shape.rows, active * group, shape.n_kv * shape.rows
    moved = 4 * all_rows + active_rows  # q, q_last twice, out; q_stored of the active rows
    state_bytes = (moved + all_rows + 2 * window) * row  # prefix_out is read or written; k and v
    keys = pages * shape.page / shape.n_kv
    return Work(page_bytes, state_bytes, 4 * shape.dim * (active_rows * keys + all_rows * shape.rows))


def measure_machine(threads: int) -> Machine:
    return Machine(bandwidth(threads), flops(threads))


def bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads read: the larger of two medians of seven, of `max` and of a dot product."""
    parts = [np.ones(BUFFER // FLOAT, np.float32) for _ in range(threads)]
    halves = [tuple(part.reshape(2, -1)) for part in parts]
    seconds = min(side_by_side(np.max, [(part,) for part in parts]), side_by_side(np.dot, halves))
    return threads * BUFFER / seconds


def side_by_side(function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> float:
    """Seconds that the calls take with a thread each."""
    seconds = []
    for _ in range(7):
        workers = [threading.Thread(target=function, args=each) for each in arguments]
        begin = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def flops(threads: int) -> float:
    arrays = {name: np.random.default_rng(0).standard_normal((MATRIX, MATRIX), np.float32) for name in ("a", "b")}
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    session = open_session(make_model([node], arrays, ["c"], []), threads, native=False)
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    seconds = []
    for _ in range(9):
        begin = time.perf_counter()
        session.run_with_ort_values(["c"], values)
        seconds.append(time.perf_counter() - begin)
    return float(2 * MATRIX**3 / statistics.median(seconds))
