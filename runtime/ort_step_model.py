"""The exported step graph as a StepModel: caches stay in place, only ids go in and logits come out.

Each cache that the graph writes is bound as input and as output, so a step copies nothing. Runs whose window is to be
stored have a binding of their own, which also fetches what the caller stores. So have runs over copies of a window,
whose attention state is not that of the sequence.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.errors import EnvironmentProblem, UsageProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.kernels.quantized_pages.planes import BOTH
from dlm_edge.kernels.select_pages.reference import EXACT_POLICY, Policy
from dlm_edge.runtime.attention import EXACT, AttentionSettings, as_matrix
from dlm_edge.runtime.bound_arrays import BoundArrays
from dlm_edge.runtime.graph_signature import check_signature, takes_copies
from dlm_edge.runtime.layouts import layout_kind
from dlm_edge.runtime.pattern_memory import PatternMemory
from dlm_edge.runtime.sequence_memory import NO_IDS, SequenceMemory
from dlm_edge.runtime.session import OpenSession, run_errors
from dlm_edge.runtime.step_model import Ids, Logits, Terminated

SCALARS = ("input_ids", "start", "cache_len", "attn_block", "logit_rows", "policy", "drift")
STORED = ("stored_rows", "stored_keys")  # of a graph that codes leave, see export/cache_nodes/leaving_codes.py
WHOLE_SEQUENCE = ("input_ids", "logit_rows", "policy")  # of a graph without a cache


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
        self.copying: Any = None  # made by the first run over copies
        self.drift = np.array([np.inf], np.float32)
        self.raw_stats = np.zeros((spec.n_layers, 4), np.float32)
        self.bound = BoundArrays(self.ort, self.device, self.memory)
        self.window = (0, np.empty(0, np.int64))  # start and ids of the last run
        self.new: dict[str, list[NDArray[Any]]] = {}  # what it gave to be stored
        self.logits = np.empty((0, spec.vocab_size), np.float32)
        self._lock = threading.Lock()
        self._running: Any = None  # RunOptions of the run in progress
        self._terminated = False
        check_signature(
            self.session, {*self.scalars, *self.memory.arrays(), *self.memory.state_shapes(1)}, self.memory.arrays()
        )
        self.batches_copies = opened.native_operators and self.device == "cpu" and takes_copies(self.session)
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
        at = self._place(len(ids), start, cache_len, attn_block)
        self.window = (start, ids.copy())
        storing = bool(stored_rows and self.stored_names)
        binding = self.storing if storing else self.stepping
        feeds = at | self._feeds(ids[None], logit_rows, policy, planes, stored_rows)
        with run_errors():
            given = self.memory.code_arrays(stored_rows) if storing and self.gives_codes else {}
            for name in self.stored_names if storing else ():
                room = given.get(name)
                if room is None or not room.size:
                    binding.bind_output(name, "cpu")
                else:
                    binding.bind_output(name, "cpu", 0, room.dtype.type, room.shape, room.ctypes.data)
            logits = self._run(binding, feeds)
            if storing:
                self._fetch(binding, given)
        return logits

    def run_copies(self, copies: Ids, start: int, cache_len: int, attn_block: int, logit_rows: Ids) -> Logits:
        length = copies.shape[1]
        at = self._place(length, start, cache_len, attn_block)
        with run_errors():
            if self.copying is None:
                self.copying = self._bind_copies()
            if self.batches_copies:
                return self._run(self.copying, at | self._feeds(copies, logit_rows))
            logits = np.empty((len(logit_rows), self.spec.vocab_size), np.float32)
            for i in range(len(copies)):
                mine = logit_rows // length == i
                feeds = at | self._feeds(copies[i : i + 1], logit_rows[mine] % length)
                logits[mine] = self._run(self.copying, feeds)
            return logits

    def _place(self, length: int, start: int, cache_len: int, attn_block: int) -> dict[str, Any]:
        """A run is about to write the window there: feeds that say where. What it will give cannot be stored yet."""
        assert start + length <= self.capacity, "window beyond the caches"
        assert "start" in self.scalars or (start, cache_len) == (0, 0), "without a cache a window is the whole sequence"
        self.memory.overwrite(start)
        self.window, self.new = (start, NO_IDS), {}
        return {"start": [start], "cache_len": [cache_len], "attn_block": [attn_block]}

    def _feeds(
        self, copies: Ids, logit_rows: Ids, policy: Policy = EXACT_POLICY, planes: int = BOTH, stored_rows: int = 0
    ) -> dict[str, Any]:
        one_list = int(self.memory.form not in ("float", "kv"))
        policy = replace(policy, page_size=self.memory.page_size, one_list=one_list)
        return {
            "input_ids": copies,
            "logit_rows": logit_rows,
            "planes": [planes],
            "stored_rows": [stored_rows],
            "stored_keys": [stored_rows if self.gives_codes and self.memory.has_bounds else 0],
            "policy": as_matrix(policy, self.spec.n_layers, self.memory.attention.dense_layers),
        }

    def _run(self, binding: Any, feeds: Mapping[str, Any]) -> Logits:
        # The binding may point into these arrays, so they live as long as the run.
        arrays = {name: np.ascontiguousarray(feeds[name], np.int64) for name in self.scalars if name in feeds}
        for name, array in arrays.items():
            binding.bind_cpu_input(name, array)
        n_rows = len(arrays["logit_rows"])
        if n_rows > len(self.logits):
            self.logits = np.empty((n_rows, self.spec.vocab_size), np.float32)
        logits = self.logits[:n_rows]
        if n_rows:
            binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        else:  # a pointer to nothing cannot be bound
            binding.bind_output("logits", "cpu")
        self.session.run_with_iobinding(binding, self._begin())
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

    @property
    def store_multiple(self) -> int:
        return self.memory.layout.codes_multiple if self.gives_codes else 1

    @property
    def stores_floats(self) -> bool:
        return self.memory.form == "float"

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
        self.bound.fetch()

    def send_caches(self) -> None:
        self.bound.send()

    def discard(self) -> None:
        self.bound.values, self.copying = {}, None
        for binding in (self.stepping, self.storing):
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()
        self.memory.discard()
        self.new, self.logits = {}, np.empty((0, self.spec.vocab_size), np.float32)
        with self._lock:
            self._running = None

    def _bind(self) -> None:
        self.bound.refresh()
        self.copying = None
        for binding in (self.stepping, self.storing):
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()
            self.bound.bind(binding)
            self._bind_rest(binding)

    def _bind_copies(self) -> Any:
        binding = self.session.io_binding()
        self.bound.bind_apart(binding)
        self._bind_rest(binding)
        return binding

    def _bind_rest(self, binding: Any) -> None:
        if "drift" in self.scalars:
            binding.bind_cpu_input("drift", self.drift)
        for layer, stats in enumerate(self.raw_stats):
            binding.bind_output(f"stats.{layer}", "cpu", 0, np.float32, stats.shape, stats.ctypes.data)
        binding.bind_output("logits", "cpu")  # its place is before what is to be stored, see _fetch
