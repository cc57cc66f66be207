"""The ways to store rows: as they are, with a scale per token, or with a scale per channel and an exact tail.

A part owns the arrays of one tensor of one layer, for `capacity` positions. It does not know how many of them are
stored: its layout does, and says so at every call.

Rows are [*lead, length, width]: lead is (1, n_kv_heads) for keys and values, whose width is head_dim, and () for rows
of X and of latents.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dlm_edge.kernels.dequantize_rows.reference import dequantize_rows, encode_rows
from dlm_edge.kernels.quantized_pages.reference import Floats

Array = NDArray[Any]


class Part(Protocol):
    arrays: dict[str, Array]

    def append(self, start: int, rows: Floats) -> None:
        """Store `rows` at [start, start + length); everything before is stored."""

    def exact_position(self, position: int, end: int) -> int:
        """The last position p <= `position` for which the arrays hold [0, p) as if nothing had followed."""

    def state(self, end: int) -> dict[str, Array]:
        """Views of what counts when [0, end) is stored."""


class FloatRows:
    """The rows themselves, in `dtype`. Every position is exact to go back to."""

    def __init__(self, lead: tuple[int, ...], capacity: int, width: int, dtype: type[np.floating[Any]]) -> None:
        self.arrays: dict[str, Array] = {"cache": np.zeros((*lead, capacity, width), dtype)}

    def append(self, start: int, rows: Floats) -> None:
        self.arrays["cache"][..., start : start + rows.shape[-2], :] = rows

    def exact_position(self, position: int, end: int) -> int:
        return position

    def state(self, end: int) -> dict[str, Array]:
        return {"cache": self.arrays["cache"][..., :end, :]}


class TokenGroups:
    """Codes with one scale per token and group of its values. Every position is exact to go back to."""

    def __init__(self, lead: tuple[int, ...], capacity: int, width: int, *, bits: int, group: int) -> None:
        self.width, self.bits, self.group = width, bits, group
        scales = (*lead, capacity, width // group)
        self.arrays: dict[str, Array] = {
            "cache": np.zeros((*lead, capacity, width * bits // 8), np.uint8),
            "scale": np.zeros(scales, np.float16),
            "low": np.zeros(scales, np.float16),
        }

    def append(self, start: int, rows: Floats) -> None:
        encoded = encode_rows(rows, bits=self.bits, axis="token", group=self.group)
        for array, part in zip(self.arrays.values(), encoded, strict=True):
            array[..., start : start + rows.shape[-2], :] = part

    def decode(self, start: int, end: int) -> Floats:
        """Rows [end - start, width] as DequantizeRows returns them; only where `lead` is ()."""
        tail = np.empty((0, self.width), np.float32)
        rows = np.arange(start, end)
        codes, scale, low = self.arrays.values()
        return dequantize_rows(codes, scale, low, tail, rows, end, bits=self.bits, axis="token")

    def exact_position(self, position: int, end: int) -> int:
        return position

    def state(self, end: int) -> dict[str, Array]:
        return {name: array[..., :end, :] for name, array in self.arrays.items()}


class ChannelGroups:
    """Codes with one scale per channel and group of tokens; the last, unfinished group is exact, in "tail".

    Exact to go back to: what lies in the tail, and every whole group.
    """

    def __init__(self, lead: tuple[int, ...], capacity: int, width: int, *, bits: int, group: int) -> None:
        assert capacity % group == 0, "the capacity holds whole groups"
        self.bits, self.group = bits, group
        scales = (*lead, capacity // group, width)
        self.arrays: dict[str, Array] = {
            "cache": np.zeros((*lead, capacity, width * bits // 8), np.uint8),
            "scale": np.zeros(scales, np.float16),
            "low": np.zeros(scales, np.float16),
            "tail": np.zeros((*lead, group, width), np.float32),
        }

    def append(self, start: int, rows: Floats) -> None:
        first = start // self.group
        tail = self.arrays["tail"]
        held = tail[..., : start - first * self.group, :]
        pending = np.concatenate([held, np.broadcast_to(rows, (*held.shape[:-2], *rows.shape[-2:]))], -2)
        whole = pending.shape[-2] // self.group
        if whole:
            encoded = encode_rows(
                pending[..., : whole * self.group, :], bits=self.bits, axis="channel", group=self.group
            )
            self.arrays["cache"][..., first * self.group : (first + whole) * self.group, :] = encoded.codes
            self.arrays["scale"][..., first : first + whole, :] = encoded.scale
            self.arrays["low"][..., first : first + whole, :] = encoded.low
        rest = pending[..., whole * self.group :, :]
        tail[..., : rest.shape[-2], :] = rest

    def exact_position(self, position: int, end: int) -> int:
        whole = self.group
        return position if position >= end // whole * whole else position // whole * whole

    def state(self, end: int) -> dict[str, Array]:
        n_groups = end // self.group
        views = {name: self.arrays[name][..., :n_groups, :] for name in ("scale", "low")}
        views["cache"] = self.arrays["cache"][..., : n_groups * self.group, :]
        views["tail"] = self.arrays["tail"][..., : end % self.group, :]
        return views
