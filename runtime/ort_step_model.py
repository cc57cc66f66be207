"""The exported step graph as a StepModel: caches stay in place, only ids go in and logits come out.

Each cache is one OrtValue, bound as input and as output, so a step copies nothing and writes only its window.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from dlm_edge.errors import InputFileError, ResourceError
from dlm_edge.families.spec import ModelSpec
from dlm_edge.runtime.session import OpenSession, run_errors
from dlm_edge.runtime.step_model import Ids, Logits, Terminated

CAPACITY_STEP = 256  # positions; a longer request grows the caches to the next multiple
CACHE_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}


def cache_bytes_per_position(spec: ModelSpec, cache_dtype: str) -> int:
    return 2 * spec.n_layers * spec.kv_width * CACHE_DTYPES[cache_dtype].itemsize


class OrtStepModel:
    """One sequence at a time; `terminate` may come from any thread, everything else from one."""

    def __init__(self, opened: OpenSession, spec: ModelSpec, cache_dtype: str) -> None:
        self.session, self.ort, self.device, self.spec = opened.session, opened.ort, opened.device, spec
        self.cache_dtype = CACHE_DTYPES[cache_dtype]
        self.bytes_per_position = cache_bytes_per_position(spec, cache_dtype)
        self.cache_names = [f"{kind}_cache" for kind in "kv"]
        self.binding = self.session.io_binding()
        self.capacity = 0
        self.logits = np.empty((0, spec.vocab_size), np.float32)
        self._lock = threading.Lock()
        self._running: Any = None  # RunOptions of the run in progress
        self._terminated = False
        self._check_signature()

    def reset(self, capacity: int) -> None:
        with self._lock:
            self._terminated = False
        if capacity > self.capacity:
            self._allocate(-(-capacity // CAPACITY_STEP) * CAPACITY_STEP)

    def run(self, ids: Ids, start: int, cache_len: int, attn_block: int, logit_rows: Ids) -> Logits:
        assert start + len(ids) <= self.capacity, "window beyond the caches"
        feeds = {
            "input_ids": ids[None],
            "start": [start],
            "cache_len": [cache_len],
            "attn_block": [attn_block],
            "logit_rows": logit_rows,
        }
        # The binding may point into these arrays, so they live as long as the run.
        arrays = {name: np.ascontiguousarray(value, np.int64) for name, value in feeds.items()}
        for name, array in arrays.items():
            self.binding.bind_cpu_input(name, array)
        n_rows = len(logit_rows)
        if n_rows > len(self.logits):
            self.logits = np.empty((n_rows, self.spec.vocab_size), np.float32)
        logits = self.logits[:n_rows]
        with run_errors():
            if n_rows:
                self.binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
            else:  # a pointer to nothing cannot be bound
                self.binding.bind_output("logits", "cpu")
            self.session.run_with_iobinding(self.binding, self._begin())
        with self._lock:
            self._running = None
        return logits

    def _begin(self) -> Any:
        """Fresh run options that `terminate` can reach, unless it came first."""
        with self._lock:
            if self._terminated:
                raise Terminated
            self._running = self.ort.RunOptions()
            return self._running

    def terminate(self) -> None:
        with self._lock:
            self._terminated = True
            if self._running is not None:
                self._running.terminate = True

    def discard(self) -> None:
        self.binding.clear_binding_inputs()
        self.binding.clear_binding_outputs()
        self.capacity = 0
        with self._lock:
            self._running = None

    def _allocate(self, capacity: int) -> None:
        """New caches of zeros: what is never written must still be finite for graphs that multiply it by 0."""
        self.discard()
        shape = (1, self.spec.n_kv_heads, capacity, self.spec.head_dim)
        try:
            for layer in range(self.spec.n_layers):
                for name in self.cache_names:
                    value = self.ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, self.cache_dtype), self.device, 0)
                    self.binding.bind_ortvalue_input(f"{name}.{layer}", value)
                    self.binding.bind_ortvalue_output(f"{name}_out.{layer}", value)
        except Exception as error:
            self.discard()
            needed = self.bytes_per_position * capacity
            message = f"the caches for {capacity} positions need {needed >> 20} MiB: {error}"
            raise ResourceError("E-MEM", message, "shorten the prompt or the output") from error
        self.capacity = capacity

    def _check_signature(self) -> None:
        """Refuse a graph whose inputs are not those of the contract, before the first run."""
        expected = {"input_ids", "start", "cache_len", "attn_block", "logit_rows"}
        expected |= {f"{name}.{i}" for name in self.cache_names for i in range(self.spec.n_layers)}
        found = {meta.name for meta in self.session.get_inputs()}
        if found != expected:
            odd = ", ".join(sorted(found ^ expected)[:5])
            raise InputFileError(
                "E-MANIFEST", f"the graph's inputs differ from the manifest's: {odd}", "export it again"
            )
