"""The arrays of a sequence as the graph's inputs and outputs: one OrtValue each, so that a run copies nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.runtime.sequence_memory import STATE, SequenceMemory


class BoundArrays:
    """On the CPU the memory's arrays themselves, elsewhere copies of them, which `fetch` and `send` keep alike."""

    def __init__(self, ort: Any, device: str, memory: SequenceMemory) -> None:
        self.ort, self.device, self.memory = ort, device, memory
        self.values: dict[str, tuple[NDArray[Any], Any]] = {}

    def refresh(self) -> None:
        """Values of the arrays that the memory has now.

        An array that had one before keeps it: on a device that holds what the graph stored, the array does not.
        """
        before, self.values = self.values, {}
        for name, array in self.memory.arrays().items():
            held, value = before.get(name, (None, None))
            self.values[name] = array, value if held is array else self.value_of(array)

    def value_of(self, array: NDArray[Any]) -> Any:
        """On the CPU the array's own memory, elsewhere a copy."""
        return self.ort.OrtValue.ortvalue_from_numpy(array, self.device, 0)

    def bind(self, binding: Any) -> None:
        """Every array as an input, and as an output where the graph writes it."""
        self._bind(binding, {name: value for name, (_, value) in self.values.items()})

    def bind_apart(self, binding: Any) -> None:
        """As `bind`, but with attention state of one row, nobody's, in which every layer writes over the last one's."""
        kinds: dict[str, Any] = {}
        for name, shape in self.memory.state_shapes(1).items():
            kind = name.split(".")[0]
            if kind in STATE and kind not in kinds:
                kinds[kind] = self.value_of(np.zeros(shape, np.float32))
        self._bind(binding, {name: kinds.get(name.split(".")[0], value) for name, (_, value) in self.values.items()})

    def _bind(self, binding: Any, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
            if self.memory.is_written(name):
                binding.bind_ortvalue_output(name.replace(".", "_out."), value)

    def fetch(self) -> None:
        """Copy what the graph stored on a device to the memory's arrays; on the CPU they are the same."""
        if self.device != "cpu" and self.memory.form == "float" and self.memory.layout.cursor:
            for layer in range(self.memory.spec.n_layers):
                for name, view in self.memory.layout.state(layer).items():
                    view[...] = self.values[f"{name}.{layer}"][1].numpy()[..., : view.shape[-2], :]

    def send(self) -> None:
        """Copy the memory's caches, and page bounds in use, to the device: whole arrays, since a part cannot be."""
        if self.device == "cpu" or not self.values:
            return
        for layer in range(self.memory.spec.n_layers):
            bounds = self.memory.bounds.buffers(layer) if self.memory.has_bounds else {}
            for name in (*self.memory.layout.buffers(layer), *bounds):
                array, value = self.values[f"{name}.{layer}"]
                value.update_inplace(array)
