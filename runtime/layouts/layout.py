"""What every cache layout has in common: arrays of a fixed capacity, a cursor, and going back to an earlier position.

Positions [0, cursor) of one sequence are stored. Rows are appended once, when they are final, layer by layer, and lie
in the arrays that the step graph reads: the arrays stay the same objects for the life of the layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from dlm_edge.families.spec import ModelSpec
from dlm_edge.kernels.quantized_pages.reference import Floats
from dlm_edge.runtime.layouts.parts import Array, ChannelGroups, FloatRows, Part, TokenGroups


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The dimensions of a model that its caches follow."""

    n_layers: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int

    @classmethod
    def of(cls, spec: ModelSpec) -> CacheShape:
        return cls(spec.n_layers, spec.n_kv_heads, spec.head_dim, spec.hidden_size)

    @property
    def kv_width(self) -> int:
        return self.n_kv_heads * self.head_dim


class BufferDescription(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One array of one layer, as a file header can say it. `dtype` is NumPy's name, little-endian."""

    name: str
    layer: int
    dtype: str
    shape: tuple[int, ...]


class LayoutDescription(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A layout and the part of its arrays that is in use; two layouts of equal description hold the same kind of state."""

    layout: str
    cursor: int
    buffers: tuple[BufferDescription, ...]


class Stored(Protocol):
    """What grows with the sequence and can go back: a layout, or page bounds."""

    @property
    def cursor(self) -> int: ...

    def exact_position(self, position: int) -> int: ...

    def truncate(self, position: int) -> int: ...

    def state(self, layer: int) -> dict[str, Array]: ...

    def restore(self, cursor: int) -> None: ...

    def description(self) -> LayoutDescription: ...


class Layout:
    """The caches of all layers, made of named parts. `transform(layer, values)` gives the rows that the parts store."""

    def __init__(
        self,
        name: str,
        capacity: int,
        layers: Sequence[Mapping[str, Part]],
        transform: Callable[[int, Sequence[Floats]], Sequence[Floats]] = lambda _, values: values,
    ) -> None:
        self.name, self.capacity = name, capacity
        self._layers, self._transform = layers, transform
        self._ends = [0] * len(layers)

    @property
    def n_layers(self) -> int:
        return len(self._layers)

    @property
    def cursor(self) -> int:
        """Positions that all layers have stored."""
        return min(self._ends)

    def buffers(self, layer: int) -> dict[str, Array]:
        """Arrays of one layer by the name of the graph input, such as "k_scale": always the same objects."""
        parts = self._layers[layer].items()
        return {f"{prefix}_{name}": array for prefix, part in parts for name, array in part.arrays.items()}

    def append(self, layer: int, start: int, *values: Floats) -> None:
        """Store the final rows of positions [start, start + W), where `start` is the layer's first free position.

        Which values, in which shape, each layout's own file says. Raises JobError E-NAN or E-QUANT when one cannot be
        stored; the layout must then be reset, since it may hold a part of the rows.
        """
        assert start == self._ends[layer], "rows are appended where the layer ends"
        parts, length = self._layers[layer].values(), values[0].shape[-2]
        assert 0 < length <= self.capacity - start, "no rows, or beyond the capacity"
        for part, rows in zip(parts, self._transform(layer, values), strict=True):
            part.append(start, rows)
        self._ends[layer] = start + length

    def empty_codes(self, layer: int, length: int) -> dict[str, Array]:
        """Arrays [lead, rows, ...] for what QuantizeRows makes of `length` rows, by the names of `buffers`."""
        parts = self._coded(layer).items()
        return {f"{prefix}_{name}": array for prefix, part in parts for name, array in part.empty_codes(length).items()}

    def append_codes(self, layer: int, start: int, arrays: Mapping[str, Array]) -> None:
        """As `append`, from the filled arrays of `empty_codes`, at a multiple of `codes_multiple`. Only for layouts of codes."""
        assert start == self._ends[layer], "rows are appended where the layer ends"
        lengths = set()
        for prefix, part in self._coded(layer).items():
            lengths.add(part.append_codes(start, {name: arrays[f"{prefix}_{name}"] for name in part.empty_codes(0)}))
        (length,) = lengths
        self._ends[layer] = start + length

    @property
    def codes_multiple(self) -> int:
        """Where codes begin that come from elsewhere: the group, where a scale is one of a channel."""
        parts = (part for layer in self._layers for part in layer.values())
        return math.lcm(*(part.group for part in parts if isinstance(part, ChannelGroups)))

    def _coded(self, layer: int) -> dict[str, TokenGroups | ChannelGroups]:
        parts = self._layers[layer].items()
        coded = {prefix: part for prefix, part in parts if isinstance(part, (TokenGroups, ChannelGroups))}
        assert len(coded) == len(parts), "a layout of plain floats"
        return coded

    def extend(self, end: int) -> None:
        """Say that the graph itself has written up to `end` in every layer: only for layouts of plain floats."""
        assert self.cursor <= end <= self.capacity
        assert all(isinstance(part, FloatRows) for layer in self._layers for part in layer.values())
        self._ends = [end] * self.n_layers

    def reset(self) -> None:
        self.truncate(0)

    def exact_position(self, position: int) -> int:
        """The last position p <= `position` to which the layout can go back as if only [0, p) had been stored.

        Layouts with a scale per token: `position` itself. With a scale per channel: what lies in the exact tail, and
        every multiple of the group.
        """
        assert 0 <= position <= self.cursor, "only backwards"
        reached = position
        while True:  # parts of different groups have to agree
            before = reached
            for layer, end in zip(self._layers, self._ends, strict=True):
                for part in layer.values():
                    reached = part.exact_position(reached, end)
            if reached == before:
                return reached

    def truncate(self, position: int) -> int:
        """Go back to `exact_position(position)`, and say which it was; later positions have to be appended again."""
        reached = self.exact_position(position)
        self._ends = [reached] * self.n_layers
        return reached

    @property
    def fixed_bytes(self) -> int:
        """Of arrays whose size does not follow the capacity: the tails."""
        return sum(
            part.arrays["tail"].nbytes for layer in self._layers for part in layer.values() if "tail" in part.arrays
        )

    @property
    def bytes_per_token(self) -> float:
        """Of all layers together, without `fixed_bytes`."""
        total = sum(array.nbytes for i in range(self.n_layers) for array in self.buffers(i).values())
        return (total - self.fixed_bytes) / self.capacity

    def state(self, layer: int) -> dict[str, Array]:
        """Views of what counts at the present cursor: to be saved, or after `restore` to be filled."""
        parts = self._layers[layer].items()
        end = self.cursor
        return {f"{prefix}_{name}": view for prefix, part in parts for name, view in part.state(end).items()}

    def restore(self, cursor: int) -> None:
        """Say that [0, cursor) is stored; the caller fills `state` of every layer right after."""
        assert 0 <= cursor <= self.capacity
        self._ends = [cursor] * self.n_layers

    def description(self) -> LayoutDescription:
        """Of the arrays that `state` gives."""
        return LayoutDescription(self.name, self.cursor, describe(self.state(i) for i in range(self.n_layers)))


def describe(layers: Iterable[Mapping[str, Array]]) -> tuple[BufferDescription, ...]:
    return tuple(
        BufferDescription(name, i, array.dtype.name, array.shape)
        for i, arrays in enumerate(layers)
        for name, array in sorted(arrays.items())
    )


def truncate_together(stored: Sequence[Stored], position: int) -> int:
    """Take a layout and its page bounds back to the last common position p <= `position` that is exact in all of them."""
    reached = min(position, *(one.cursor for one in stored))
    while (lower := min(one.exact_position(reached) for one in stored)) < reached:
        reached = lower
    for one in stored:
        one.truncate(reached)
    return reached


def copy_state(source: Stored, target: Stored, n_layers: int) -> None:
    """Make `target`, of the same kind and at least the capacity that is in use, hold what `source` holds."""
    target.restore(source.cursor)
    assert target.description() == source.description(), "layouts of different kinds"
    for layer in range(n_layers):
        for name, view in target.state(layer).items():
            view[...] = source.state(layer)[name]
