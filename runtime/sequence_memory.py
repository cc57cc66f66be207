"""What one sequence keeps between runs: the caches in their layout, bounds of their pages, and the state of sparse attention.

All of it are arrays by the names of the graph's inputs. The caches also know which tokens they were computed from, so
that a later request with the same beginning need not compute it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.errors import ResourceError
from dlm_edge.families.spec import ModelSpec
from dlm_edge.runtime.attention import EXACT, POLICIES, AttentionSettings
from dlm_edge.runtime.layouts import (
    CacheShape,
    Layout,
    PageBounds,
    copy_state,
    layout_kind,
    open_layout,
    truncate_together,
)
from dlm_edge.runtime.step_model import Ids

Arrays = dict[str, NDArray[Any]]
STATE = ("q_last", "q_stored", "prefix_out", "prefix_lse", "masses")
NO_IDS = np.empty(0, np.int64)
CAPACITY_STEP = 256  # positions; a longer request grows the caches to the next multiple


class SequenceMemory:
    def __init__(self, spec: ModelSpec, layout: str, group: int) -> None:
        self.spec, self.name, self.group = spec, layout, group
        self.shape, self.form = CacheShape.of(spec), layout_kind(layout).form
        self.attention = EXACT
        self.discard()

    def discard(self) -> None:
        self.capacity = 0
        self.layout: Layout = open_layout(self.name, self.shape, 0, group=self.group)
        self.bounds: PageBounds = PageBounds(self.shape, 0, 1)
        self.state: Arrays = {}
        self.ids: Ids = NO_IDS  # of the positions [0, len) that are stored

    @property
    def has_bounds(self) -> bool:
        return self.attention.needs_bounds

    @property
    def page_size(self) -> int:
        return self.bounds.page_size

    def reserve(self, capacity: int, attention: AttentionSettings, max_rows: int) -> bool:
        """Room for a request; True where arrays became other ones. What is stored stays. Raises E-MEM."""
        before = (id(self.layout), id(self.bounds), *(array.shape for array in self.state.values()))
        self.attention = attention
        try:
            if capacity > self.capacity:
                self.grow(-(-capacity // CAPACITY_STEP) * CAPACITY_STEP)
            policy = POLICIES[attention.policy]
            page = attention.page_size if attention.needs_bounds or attention.needs_masses else self.capacity
            if page != self.bounds.page_size or self.bounds.capacity != self.capacity:
                old, self.bounds = self.bounds, PageBounds(self.shape, self.capacity, page)
                if page == old.page_size:
                    copy_state(old, self.bounds, self.spec.n_layers)
            if not attention.needs_bounds:
                self.bounds.reset()  # they will not follow what is stored from now on
            elif self.form == "float":
                self.bound_stored_keys()
            shapes = self.state_shapes(max_rows if policy.keeps_rows else 1)
            if shapes != {name: array.shape for name, array in self.state.items()}:
                self.state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        except MemoryError as error:
            self.discard()
            message = f"the caches for {capacity} positions do not fit into memory: {error}"
            raise ResourceError("E-MEM", message, "shorten the prompt or the output") from error
        return before != (id(self.layout), id(self.bounds), *(array.shape for array in self.state.values()))

    def bound_stored_keys(self) -> None:
        """Bounds of what was stored while nobody asked for them, so that the prompt need not be computed again."""
        start, end = self.bounds.cursor, self.layout.cursor
        if start < end:
            for layer in range(self.spec.n_layers):
                self.bounds.append(layer, start, self.keys(layer, start, end, {}))

    def forget(self) -> None:
        """Nothing is stored any more; the arrays stay."""
        self.layout.reset()
        self.bounds.reset()
        self.ids = NO_IDS

    def grow(self, capacity: int) -> None:
        layout = open_layout(self.name, self.shape, capacity, group=self.group)
        layout.restore(self.layout.cursor)
        for layer in range(self.spec.n_layers):
            old = self.layout.state(layer)
            for name, view in layout.state(layer).items():
                view[...] = old[name]
        self.layout, self.capacity = layout, capacity

    def state_shapes(self, n_rows: int) -> dict[str, tuple[int, ...]]:
        spec, n_slots = self.spec, self.capacity // self.page_size
        rows = (1, spec.n_heads, n_rows)
        shapes = {
            "q_last": (*rows, spec.head_dim), "q_stored": (*rows, spec.head_dim),
            "prefix_out": (*rows, spec.head_dim), "prefix_lse": rows, "masses": (1, spec.n_kv_heads, n_slots),
        }  # fmt: skip
        return {f"{name}.{i}": shape for i in range(spec.n_layers) for name, shape in shapes.items()}

    def arrays(self) -> Arrays:
        """Every input of the graph that lives here."""
        layers = range(self.spec.n_layers)
        found = {f"{n}.{i}": a for i in layers for n, a in self.layout.buffers(i).items()}
        return found | {f"{n}.{i}": a for i in layers for n, a in self.bounds.buffers(i).items()} | self.state

    def is_written(self, name: str) -> bool:
        """Whether the graph writes the input, so that its output has to be bound to the same memory."""
        kind = name.split(".")[0]
        if kind == "masses":
            return self.form in ("float", "kv")
        return kind in STATE or (self.form == "float" and kind in ("k_cache", "v_cache"))

    def overwrite(self, start: int) -> None:
        """A run over a window at `start` is about to write the caches, where the graph does that."""
        if self.form == "float" and start < self.layout.cursor:
            self.layout.truncate(start)
            self.bounds.truncate(min(start, self.bounds.cursor))
        self.ids = self.ids[: min(start, self.layout.cursor)]

    def keep(self, ids: Ids, multiple: int) -> int:
        """Keep the longest beginning of `ids` that is stored and ends at a multiple; forget the rest, and say its length."""
        kept, stored = self.stored_prefix(ids), self.stored()
        while (reached := truncate_together(stored, kept // multiple * multiple)) % multiple:
            kept = reached
        self.ids = self.ids[:reached]
        return reached

    def stored_prefix(self, ids: Sequence[int] | Ids) -> int:
        """Length of the longest beginning of `ids` that is stored."""
        n = min(len(ids), len(self.ids))
        differ = np.flatnonzero(np.asarray(ids[:n]) != self.ids[:n])
        return int(differ[0]) if differ.size else n

    def stored(self) -> Sequence[Layout | PageBounds]:
        return [self.layout, self.bounds] if self.has_bounds else [self.layout]

    def code_arrays(self, n_rows: int) -> Arrays:
        """Memory for the codes of rows that a run is to give, by the name of the graph's output.

        It is not the runtime's, whose arena would be cut up by arrays that outlive the layer they are of.
        """
        layers = range(self.spec.n_layers)
        return {f"{name}_new.{i}": a for i in layers for name, a in self.layout.empty_codes(i, n_rows).items()}

    def store(self, start: int, ids: Ids, new: Mapping[str, Sequence[NDArray[Any]]]) -> None:
        """The positions `ids` from `start` on are final. `new`: what the graph gave to be stored, by name, for each layer:
        codes of these positions, or floats of them and perhaps of some after them."""
        end = start + len(ids)
        if self.form == "float":
            self.layout.extend(end)
        elif start < self.layout.cursor:
            truncate_together(self.stored(), start)
        for layer in range(self.spec.n_layers if len(ids) else 0):
            codes = {name: f"{name}_new" for name in self.layout.empty_codes(layer, 0)} if self.form != "float" else {}
            if codes and all(name in new for name in codes.values()):
                arrays = {name: new[output][layer] for name, output in codes.items()}
                self.layout.append_codes(layer, start, arrays)
            elif self.form != "float":
                given = [new[name][layer][0] for name in new if name != "keys_new"]
                rows = [np.asarray(each[..., : len(ids), :], np.float32) for each in given]
                self.layout.append(layer, start, *rows)
            if self.has_bounds:
                self.bounds.append(layer, start, self.keys(layer, start, end, new))
        self.ids = np.concatenate([self.ids[:start], ids]) if len(self.ids) >= start else NO_IDS

    def keys(self, layer: int, start: int, end: int, new: Mapping[str, Sequence[NDArray[Any]]]) -> NDArray[np.float32]:
        """After RoPE, [n_kv_heads, W, head_dim]."""
        if self.form == "float":
            found = self.layout.buffers(layer)["k_cache"][0, :, start:end]
        else:
            found = new["keys_new" if "keys_new" in new else "k_new"][layer][0][:, : end - start]
        return found.astype(np.float32)

    @property
    def bounds_share(self) -> float:
        """Bytes of a page's bounds over those of what it stores, for one kv head."""
        return self.bounds.bytes_per_token / self.layout.bytes_per_token
