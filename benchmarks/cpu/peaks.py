"""What this machine can do at most, on the clock that counts for the number of threads.

The products of dlm_edge/machine_peaks.py, in sessions that leave ONNX Runtime free to choose its fastest instructions. With
one thread the clock is the processor's: what else the machine does then lowers neither the peaks nor what is compared with
them. Bandwidth is that of reading a buffer far larger than the caches, a piece for each thread.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from dlm_edge.machine_peaks import BUFFER_BYTES, LARGEST_BUFFER, Peak, Peaks, last_level_cache_bytes, peak_of
from dlm_edge.one_node_model import one_node_model

ROWS = (32, 128)
WIDTHS = {"int8": 1024, "fp32": 512}
TURN_S = 0.03


class Meter:
    """`measure` before and after other work; a peak is the median of all its rounds."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.clock = time.thread_time if threads == 1 else time.perf_counter
        products = {"int8": integer_product(threads, WIDTHS["int8"]), "fp32": float_product(threads, WIDTHS["fp32"])}
        self.runs: dict[tuple[str, int], Callable[[], Any]] = {
            (kind, rows): partial(multiply, rows) for kind, multiply in products.items() for rows in ROWS
        }
        self.seconds: dict[tuple[str, int], list[float]] = {key: [] for key in self.runs}
        size = min(max(BUFFER_BYTES, 4 * last_level_cache_bytes()), LARGEST_BUFFER)
        self.pieces = [np.ones(size // threads // 4, np.float32) for _ in range(threads)]
        self.reading: list[float] = []

    def measure(self, rounds: int) -> None:
        for _ in range(rounds):
            for key, run in self.runs.items():
                run()
                ends = self.clock() + TURN_S
                while self.clock() < ends:
                    self.seconds[key].append(self.seconds_of(run))
            self.reading.append(self.seconds_of(self.read))

    def seconds_of(self, run: Callable[[], object]) -> float:
        began = self.clock()
        run()
        return self.clock() - began

    def read(self) -> None:
        """NumPy lets go of the interpreter's lock while it reads."""
        workers = [threading.Thread(target=np.max, args=(piece,)) for piece in self.pieces[1:]]
        for worker in workers:
            worker.start()
        self.pieces[0].max()
        for worker in workers:
            worker.join()

    def peaks(self) -> Peaks:
        found: dict[str, dict[str, Peak]] = {kind: {} for kind in WIDTHS}
        for (kind, rows), seconds in self.seconds.items():
            found[kind][str(rows)] = peak_of(2 * rows * WIDTHS[kind] ** 2, seconds)
        read = sum(piece.nbytes for piece in self.pieces)
        return Peaks(threads=self.threads, bandwidth=peak_of(read, self.reading), buffer_bytes=read, **found)


def integer_product(threads: int, width: int) -> Callable[[int], Any]:
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (width, width), np.int8)
    rows = rng.integers(0, 256, (max(ROWS), width), np.uint8)
    return product("MatMulInteger", rows, {"b": weight, "zero": np.array(128, np.uint8)}, np.dtype("int32"), threads)


def float_product(threads: int, width: int) -> Callable[[int], Any]:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((width, width), np.float32)
    return product("MatMul", rng.standard_normal((max(ROWS), width), np.float32), {"b": weight}, weight.dtype, threads)


def product(
    operator: str,
    rows: np.ndarray[Any, Any],
    constants: dict[str, np.ndarray[Any, Any]],
    result: np.dtype[Any],
    threads: int,
) -> Callable[[int], Any]:
    """A function of n that multiplies the first n of `rows` by the constant matrix."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as the runtime has it
    model = one_node_model((operator, "", 24), {"a": rows.dtype}, {"c": result}, constants=constants)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    out = np.zeros((len(rows), constants["b"].shape[1]), result)  # pages of a new result would be part of the time

    def multiply(n: int) -> None:
        binding = session.io_binding()
        binding.bind_cpu_input("a", rows[:n])
        binding.bind_output("c", "cpu", 0, out.dtype.type, (n, out.shape[1]), out.ctypes.data)
        session.run_with_iobinding(binding)

    return multiply


class OtherPrograms:
    """How many cores other programs kept busy since this was made: the mean. Without /proc it is not known."""

    def __init__(self, *children: int) -> None:
        self.children, self.began = children, time.perf_counter()
        self.start = self._others()

    def cores(self) -> float | None:
        now, seconds = self._others(), time.perf_counter() - self.began
        return None if now is None or self.start is None else max((now - self.start) / seconds, 0.0)

    def _others(self) -> float | None:
        """Seconds that all cores together were busy, without this process and its children."""
        if not Path("/proc/stat").exists():
            return None
        user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
        ticks = user + nice + system + sum(interrupts)
        for pid in self.children:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks -= int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()
