"""The exported step graph as a StepModel: caches stay in place, only ids go in and logits come out.

Each cache that the graph writes is one OrtValue, bound as input and as output, so a step copies nothing. Runs whose
window is to be stored have a binding of their own, which also fetches what the caller stores.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.errors import EnvironmentProblem, InputFileError, UsageProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.kernels.quantized_pages.planes import BOTH
from dlm_edge.kernels.select_pages.reference import EXACT_POLICY, Policy
from dlm_edge.runtime.attention import EXACT, AttentionSettings, as_matrix
from dlm_edge.runtime.layouts import layout_kind
from dlm_edge.runtime.pattern_memory import PatternMemory
from dlm_edge.runtime.sequence_memory import SequenceMemory
from dlm_edge.runtime.session import OpenSession, run_errors
from dlm_edge.runtime.step_model import Ids, Logits, Terminated

SCALARS = ("input_ids", "start", "cache_len", "attn_block", "logit_rows", "policy", "drift")
STORED = ("stored_rows", "stored_keys")  # of a graph that codes leave, see export/cache_nodes/leaving_codes.py
WHOLE_SEQUENCE = ("input_ids", "logit_rows", "policy")  # of a graph without a cache

TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "uint8": "tensor(uint8)", "int8": "tensor(int8)"}


class OrtStepModel:
    """One sequence at a time; `terminate` may come from any thread, everything else from one."""

    def __init__(self, opened: OpenSession, spec: ModelSpec, layout: str, group: int) -> None:
        self.session, self.ort, self.device, self.spec = opened.session, opened.ort, opened.device, spec
        self.memory = (PatternMemory if layout == "none" else SequenceMemory)(spec, layout, group)
        self.scalars = WHOLE_SEQUENCE if layout == "none" else SCALARS
        inputs = {meta.name for meta in self.session.get_inputs()}
        self.gives_codes = set(STORED) <= inputs
        if self.gives_codes:
            self.scalars = (*self.scalars, *STORED)
        if layout_kind(layout).has_planes:
            self.scalars = (*self.scalars, "planes")
        self.stored_names = [o.name for o in self.session.get_outputs() if o.name.split(".")[0].endswith("_new")]
        self.stepping, self.storing = self.session.io_binding(), self.session.io_binding()
        self.drift = np.array([np.inf], np.float32)
        self.raw_stats = np.zeros((spec.n_layers, 4), np.float32)
        self.bound: dict[str, tuple[NDArray[Any], Any]] = {}  # the memory's arrays, and the OrtValues bound for them
        self.window = (0, np.empty(0, np.int64))  # start and ids of the last run
        self.new: dict[str, list[NDArray[Any]]] = {}  # what it gave to be stored
        self.logits = np.empty((0, spec.vocab_size), np.float32)
        self._lock = threading.Lock()
        self._running: Any = None  # RunOptions of the run in progress
        self._terminated = False
        self._check_signature()
        if self.device != "cpu" and layout_kind(layout).has_planes:
            message = f"the cache layout {layout} lies in planes, which the operators of {self.device} do not read"
            raise EnvironmentProblem(
                "E-DEVICE", message, "export with --cache kv-int8 or kv-int4, or choose --device cpu"
            )

    @property
    def capacity(self) -> int:
        return self.memory.capacity

    def reset(self, capacity: int, attention: AttentionSettings = EXACT, max_rows: int = 1) -> None:
        with self._lock:
            self._terminated = False
        self.drift[0] = attention.drift
        if self.device != "cpu" and attention.needs_bounds and self.memory.form == "float":
            message = f"attention {attention.policy} by page bounds needs keys that pass through the host's memory"
            hint = "on this device use losa with the selector first, or mage, or export with --cache kv-int8"
            raise UsageProblem("E-PARAM", message, hint)
        if capacity > self.capacity:  # the caches grow in the host's memory
            self.fetch_caches()
        if self.memory.reserve(capacity, attention, max_rows):
            self._bind()

    def run(
        self,
        ids: Ids,
        start: int,
        cache_len: int,
        attn_block: int,
        logit_rows: Ids,
        policy: Policy = EXACT_POLICY,
        *,
        planes: int = BOTH,
        stored_rows: int = 0,
    ) -> Logits:
        assert start + len(ids) <= self.capacity, "window beyond the caches"
        assert "start" in self.scalars or (start, cache_len) == (0, 0), "without a cache a window is the whole sequence"
        self.memory.overwrite(start)
        self.window, self.new = (start, ids.copy()), {}
        one_list = int(self.memory.form not in ("float", "kv"))
        policy = replace(policy, page_size=self.memory.page_size, one_list=one_list)
        feeds = {
            "input_ids": ids[None],
            "start": [start],
            "cache_len": [cache_len],
            "attn_block": [attn_block],
            "logit_rows": logit_rows,
            "planes": [planes],
            "stored_rows": [stored_rows],
            "stored_keys": [stored_rows if self.gives_codes and self.memory.has_bounds else 0],
            "policy": as_matrix(policy, self.spec.n_layers, self.memory.attention.dense_layers),
        }
        # The binding may point into these arrays, so they live as long as the run.
        arrays = {name: np.ascontiguousarray(feeds[name], np.int64) for name in self.scalars if name in feeds}
        storing = bool(stored_rows and self.stored_names)
        binding = self.storing if storing else self.stepping
        for name, array in arrays.items():
            binding.bind_cpu_input(name, array)
        n_rows = len(logit_rows)
        if n_rows > len(self.logits):
            self.logits = np.empty((n_rows, self.spec.vocab_size), np.float32)
        logits = self.logits[:n_rows]
        with run_errors():
            if n_rows:
                binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
            else:  # a pointer to nothing cannot be bound
                binding.bind_output("logits", "cpu")
            given = self.memory.code_arrays(stored_rows) if storing and self.gives_codes else {}
            for name in self.stored_names if storing else ():
                room = given.get(name)
                if room is None or not room.size:
                    binding.bind_output(name, "cpu")
                else:
                    binding.bind_output(name, "cpu", 0, room.dtype.type, room.shape, room.ctypes.data)
            self.session.run_with_iobinding(binding, self._begin())
            if storing:
                self._fetch(binding, given)
        with self._lock:
            self._running = None
        return logits

    def _fetch(self, binding: Any, given: Mapping[str, NDArray[Any]]) -> None:
        """Outputs come in the order in which they were bound: these were the last."""
        values = binding.get_outputs()[-len(self.stored_names) :]
        for name, value in zip(self.stored_names, values, strict=True):
            self.new.setdefault(name.split(".")[0], []).append(given[name] if name in given else value.numpy())

    def store(self, start: int, end: int) -> None:
        assert self.window[0] == start and end - start <= len(self.window[1]), "only the last window can be stored"
        self.memory.store(start, self.window[1][: end - start], self.new)
        if self.memory.form != "float":
            self.send_caches()
        self.new = {}  # as large as the cache itself, or larger
        for name in self.stored_names:
            self.storing.bind_output(name, "cpu")

    def keep(self, ids: Ids, multiple: int) -> int:
        before, kept = self.memory.layout.cursor, self.memory.keep(ids, multiple)
        if kept < before and self.memory.form != "float":  # the last group or page may have changed
            self.send_caches()
        return kept

    def stored_prefix(self, ids: Sequence[int]) -> int:
        return self.memory.stored_prefix(ids)

    @property
    def stats(self) -> NDArray[np.float32]:
        heads: NDArray[np.float32] = np.array([self.spec.n_kv_heads] * 3 + [1], np.float32)
        stats = self.raw_stats / heads
        stats[:, 3] *= stats[:, 2] * self.memory.bounds_share
        return stats

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

    def fetch_caches(self) -> None:
        """Copy what the graph stored on a device to the memory's arrays; on the CPU they are the same."""
        if self.device != "cpu" and self.memory.form == "float" and self.memory.layout.cursor:
            for layer in range(self.spec.n_layers):
                for name, view in self.memory.layout.state(layer).items():
                    view[...] = self.bound[f"{name}.{layer}"][1].numpy()[..., : view.shape[-2], :]

    def send_caches(self) -> None:
        """Copy the memory's caches, and page bounds that are in use, to the device: whole arrays, since a part cannot be."""
        if self.device == "cpu" or not self.bound:
            return
        for layer in range(self.spec.n_layers):
            bounds = self.memory.bounds.buffers(layer) if self.memory.has_bounds else {}
            for name in (*self.memory.layout.buffers(layer), *bounds):
                array, value = self.bound[f"{name}.{layer}"]
                value.update_inplace(array)

    def discard(self) -> None:
        self.bound = {}
        for binding in (self.stepping, self.storing):
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()
        self.memory.discard()
        self.new, self.logits = {}, np.empty((0, self.spec.vocab_size), np.float32)
        with self._lock:
            self._running = None

    def _bind(self) -> None:
        """Every array of the memory as an input, and as an output where the graph writes it.

        An array that was bound before keeps its value: on a device that holds what the graph stored, the array does not.
        """
        for binding in (self.stepping, self.storing):
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()
            if "drift" in self.scalars:
                binding.bind_cpu_input("drift", self.drift)
        before, self.bound = self.bound, {}
        for name, array in self.memory.arrays().items():
            held, value = before.get(name, (None, None))
            if held is not array:
                value = self._value_of(array)
            self.bound[name] = array, value
            for binding in (self.stepping, self.storing):
                binding.bind_ortvalue_input(name, value)
                if self.memory.is_written(name):
                    binding.bind_ortvalue_output(name.replace(".", "_out."), value)
        for layer, stats in enumerate(self.raw_stats):
            for binding in (self.stepping, self.storing):
                binding.bind_output(f"stats.{layer}", "cpu", 0, np.float32, stats.shape, stats.ctypes.data)

    def _value_of(self, array: NDArray[Any]) -> Any:
        """On the CPU the array's own memory, elsewhere a copy."""
        return self.ort.OrtValue.ortvalue_from_numpy(array, self.device, 0)

    def _check_signature(self) -> None:
        """Refuse a graph whose inputs are not those of the contract, before the first run."""
        expected = {*self.scalars, *self.memory.arrays(), *self.memory.state_shapes(1)}
        found = {meta.name for meta in self.session.get_inputs()}
        odd = sorted(found ^ expected) or [meta.name for meta in self.session.get_inputs() if self._is_other(meta)]
        if odd:
            raise InputFileError(
                "E-MANIFEST", f"the graph's inputs differ from the manifest's: {', '.join(odd[:5])}", "export it again"
            )

    def _is_other(self, meta: Any) -> bool:
        """Whether an array of the memory has another type, or other fixed dimensions, than the graph's input."""
        array = self.memory.arrays().get(meta.name)
        if array is None:
            return False
        sizes = [size if isinstance(size, int) else given for size, given in zip(meta.shape, array.shape, strict=False)]
        return meta.type != TYPES[array.dtype.name] or len(meta.shape) != array.ndim or tuple(sizes) != array.shape
