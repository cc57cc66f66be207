"""What this machine can do at most, measured: multiplications of ONNX Runtime's matrix products, and reading memory.

    int8       MatMulInteger of u8 rows with a constant s8 matrix, the integer product of w8a8
    fp32       MatMul of float32 rows with a constant matrix
    bandwidth  the largest value of a buffer far larger than the caches, a piece for each thread (NumPy's `max`)

Sessions are opened as the runtime opens its own, with the same number of threads and without spinning. A peak is the median
of all its products, so a busy machine lowers it as it lowers everything else measured beside it; its spread is the slowest
over the fastest, so that this shows in the figures themselves.
"""

from __future__ import annotations

import math
import os
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dlm_edge.one_node_model import one_node_model
from dlm_edge.runtime.onnxruntime_guard import load_onnxruntime
from dlm_edge.runtime.session import session_options

ROWS = (32, 128, 512)  # a denoising step, and pieces of a prompt
MATRIX_BYTES = 1 << 20  # of the square matrix, which a core keeps near: 1024 wide in int8, 512 in float32
BUFFER_BYTES, LARGEST_BUFFER = 128 << 20, 1 << 30
CACHE_SIZES = "/sys/devices/system/cpu/cpu0/cache"
TURN_S = 0.02  # of a round for each product: short ones are repeated, so that an interruption is not the median
UNITS = {"K": 1 << 10, "M": 1 << 20}


class Peak(msgspec.Struct, frozen=True, kw_only=True):
    """`value` per second, in the unit of its table; `spread`: the slowest over the fastest time."""

    value: float
    spread: float


class Peaks(msgspec.Struct, frozen=True, kw_only=True):
    """Billions of operations a second (a multiplication and an addition are two) by rows, and 10^9 bytes a second."""

    threads: int | None  # None: as many as the runtime takes by itself
    int8: dict[str, Peak]
    fp32: dict[str, Peak]
    bandwidth: Peak
    buffer_bytes: int  # that the bandwidth was measured over

    def gflop_s(self, kind: str) -> float:
        """The largest over all rows, of "int8" or "fp32"."""
        found: dict[str, Peak] = getattr(self, kind)
        return max(peak.value for peak in found.values())


class PeakMeter:
    """`measure` as often as is convenient, before and after other work too: what counts is the median of all rounds."""

    def __init__(self, threads: int | None, *, rows: tuple[int, ...] = ROWS, matrix_bytes: int = MATRIX_BYTES) -> None:
        self.threads = threads
        n_readers = threads or os.cpu_count() or 1
        self.buffer_bytes = min(max(BUFFER_BYTES, 4 * last_level_cache_bytes()), LARGEST_BUFFER)
        self._pieces = [np.ones(self.buffer_bytes // n_readers // 4, np.float32) for _ in range(n_readers)]
        self._products: dict[tuple[str, int], tuple[int, Callable[[int], Any], int]] = {}
        for kind, of, size in (("int8", integer_product, 1), ("fp32", float_product, 4)):
            width = math.isqrt(matrix_bytes // size)
            multiply = of(threads, width)
            self._products |= {(kind, n): (2 * n * width**2, multiply, n) for n in rows}
        self._seconds: dict[tuple[str, int], list[float]] = {key: [] for key in self._products}
        self._reading: list[float] = []
        for _, multiply, n in self._products.values():
            multiply(n)  # pages of the arena, and threads

    def measure(self, rounds: int) -> None:
        for _ in range(rounds):
            for key, (_, multiply, n) in self._products.items():
                ends = time.perf_counter() + TURN_S
                while time.perf_counter() < ends:
                    self._seconds[key].append(seconds_of(partial(multiply, n)))
            self._reading.append(seconds_of(self._read))

    def peaks(self) -> Peaks:
        found: dict[str, dict[str, Peak]] = {"int8": {}, "fp32": {}}
        for (kind, n), (operations, *_) in self._products.items():
            found[kind][str(n)] = peak_of(operations, self._seconds[kind, n])
        read = sum(piece.nbytes for piece in self._pieces)
        return Peaks(
            threads=self.threads,
            int8=found["int8"],
            fp32=found["fp32"],
            bandwidth=peak_of(read, self._reading),
            buffer_bytes=read,
        )

    def _read(self) -> None:
        """NumPy lets go of the interpreter's lock while it reads."""
        workers = [threading.Thread(target=np.max, args=(piece,)) for piece in self._pieces]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


def measure_peaks(threads: int | None, rounds: int = 7) -> Peaks:
    meter = PeakMeter(threads)
    meter.measure(rounds)
    return meter.peaks()


def peak_of(amount: float, seconds: list[float]) -> Peak:
    return Peak(value=amount / statistics.median(seconds) / 1e9, spread=max(seconds) / min(seconds))


def seconds_of(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def integer_product(threads: int | None, width: int) -> Callable[[int], Any]:
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (width, width), np.int8)
    rows = rng.integers(0, 256, (max(ROWS), width), np.uint8)
    return product("MatMulInteger", rows, {"b": weight, "zero": np.array(128, np.uint8)}, np.dtype("int32"), threads)


def float_product(threads: int | None, width: int) -> Callable[[int], Any]:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((width, width), np.float32)
    return product("MatMul", rng.standard_normal((max(ROWS), width), np.float32), {"b": weight}, weight.dtype, threads)


def product(
    operator: str,
    rows: np.ndarray[Any, np.dtype[Any]],
    constants: dict[str, np.ndarray[Any, np.dtype[Any]]],
    result: np.dtype[Any],
    threads: int | None,
) -> Callable[[int], Any]:
    """A function of n that multiplies the first n of `rows` by the constant matrix; its result is valid until the next call."""
    ort = load_onnxruntime()
    model = one_node_model((operator, "", 24), {"a": rows.dtype}, {"c": result}, constants=constants)
    session = ort.InferenceSession(model, session_options(ort, threads), providers=["CPUExecutionProvider"])
    out = np.zeros((len(rows), constants["b"].shape[1]), result)  # pages of a new result would be part of the time

    def multiply(n: int) -> np.ndarray[Any, np.dtype[Any]]:
        binding = session.io_binding()
        binding.bind_cpu_input("a", rows[:n])
        binding.bind_output("c", "cpu", 0, out.dtype.type, (n, out.shape[1]), out.ctypes.data)
        session.run_with_iobinding(binding)
        return out[:n]

    return multiply


def last_level_cache_bytes() -> int:
    """Of the largest cache that Linux tells of; 0 where nothing is told."""
    found = [0]
    for path in Path(CACHE_SIZES).glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        if text[:-1].isdigit() and text[-1] in UNITS:
            found.append(int(text[:-1]) * UNITS[text[-1]])
    return max(found)
