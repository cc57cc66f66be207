"""The ways to store rows: as they are, with a scale per token, or with a scale per channel and an exact tail.

A part owns the arrays of one tensor of one layer, for `capacity` positions. It does not know how many of them are
stored: its layout does, and says so at every call.

Rows are [*lead, length, width]: lead is (1, n_kv_heads) for keys and values, whose width is head_dim, and () for rows
of X and of latents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dlm_edge.kernels.dequantize_rows.reference import dequantize_rows, encode_rows
from dlm_edge.kernels.quantize_rows.reference import check_scales
from dlm_edge.kernels.quantized_pages.planes import split_codes
from dlm_edge.kernels.quantized_pages.reference import Codes, Floats

Array = NDArray[Any]


class Part(Protocol):
    arrays: dict[str, Array]

    def append(self, start: int, rows: Floats) -> None:
        """Store `rows` at [start, start + length); everything before is stored."""

    def exact_position(self, position: int, end: int) -> int:
        """The last position p <= `position` for which the arrays hold [0, p) as if nothing had followed."""

    def state(self, end: int) -> dict[str, Array]:
        """Views of what counts when [0, end) is stored."""


def empty_rows(arrays: Mapping[str, Array], name: str, length: int) -> Array:
    """[lead, length, width]: QuantizeRows has one axis for all that are in front, and leaves codes whole."""
    like = arrays[name]
    width = like.shape[-1] * (2 if name == "cache" and "lower" in arrays else 1)
    return np.empty((math.prod(like.shape[:-2]), length, width), like.dtype)


def code_arrays(shape: tuple[int, ...], bits: int, planes: bool) -> dict[str, Array]:
    """For codes of the shape [..., width], packed."""
    *rows, width = shape
    if not planes:
        return {"cache": np.zeros((*rows, width * bits // 8), np.uint8)}
    assert bits == 8, "a plane holds half of a byte"
    return {name: np.zeros((*rows, width // 2), np.uint8) for name in ("cache", "lower")}


def put_codes(arrays: Mapping[str, Array], start: int, codes: Codes) -> None:
    """Packed codes [..., length, bytes] at the positions from `start` on."""
    split = dict(zip(("cache", "lower"), split_codes(codes), strict=True)) if "lower" in arrays else {"cache": codes}
    for name, plane in split.items():
        arrays[name][..., start : start + codes.shape[-2], :] = plane


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
    """Codes with one scale per token and group of its values. Every position is exact to go back to.

    `planes`: codes of 8 bits, their upper halves in "cache", their lower halves in "lower".
    """

    def __init__(
        self, lead: tuple[int, ...], capacity: int, width: int, *, bits: int, group: int, planes: bool = False
    ) -> None:
        self.width, self.bits, self.group = width, bits, group
        scales = (*lead, capacity, width // group)
        self.arrays: dict[str, Array] = {
            **code_arrays((*lead, capacity, width), bits, planes),
            "scale": np.zeros(scales, np.float16),
            "low": np.zeros(scales, np.float16),
        }

    def append(self, start: int, rows: Floats) -> None:
        encoded = encode_rows(rows, bits=self.bits, axis="token", group=self.group)
        self._put(start, dict(zip(("cache", "scale", "low"), encoded, strict=True)))

    def _put(self, start: int, rows: Mapping[str, Array]) -> None:
        put_codes(self.arrays, start, rows["cache"])
        for name in ("scale", "low"):
            self.arrays[name][..., start : start + rows[name].shape[-2], :] = rows[name]

    def empty_codes(self, length: int) -> dict[str, Array]:
        """Arrays for what QuantizeRows makes of `length` rows, by the names of `arrays`."""
        return {name: empty_rows(self.arrays, name, length) for name in ("cache", "scale", "low")}

    def append_codes(self, start: int, given: Mapping[str, Array]) -> int:
        """As `append`, from the filled arrays of `empty_codes`; returns how many rows they are."""
        check_scales(given["scale"])
        self._put(start, given)
        length: int = given["cache"].shape[-2]
        return length

    def decode(self, start: int, end: int) -> Floats:
        """Rows [end - start, width] as DequantizeRows returns them; only where `lead` is (), and not of planes."""
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

    Exact to go back to: what lies in the tail, and every whole group. `planes` as in TokenGroups.
    """

    def __init__(
        self, lead: tuple[int, ...], capacity: int, width: int, *, bits: int, group: int, planes: bool = False
    ) -> None:
        assert capacity % group == 0, "the capacity holds whole groups"
        self.bits, self.group = bits, group
        scales = (*lead, capacity // group, width)
        self.arrays: dict[str, Array] = {
            **code_arrays((*lead, capacity, width), bits, planes),
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
            put_codes(self.arrays, first * self.group, encoded.codes)
            self.arrays["scale"][..., first : first + whole, :] = encoded.scale
            self.arrays["low"][..., first : first + whole, :] = encoded.low
        rest = pending[..., whole * self.group :, :]
        tail[..., : rest.shape[-2], :] = rest

    def empty_codes(self, length: int) -> dict[str, Array]:
        """Arrays for what QuantizeRows makes of `length` rows, by the names of `arrays`."""
        whole = length // self.group
        lengths = {"cache": whole * self.group, "scale": whole, "low": whole, "tail": length - whole * self.group}
        return {name: empty_rows(self.arrays, name, n) for name, n in lengths.items()}

    def append_codes(self, start: int, given: Mapping[str, Array]) -> int:
        """As `append`, from the filled arrays of `empty_codes`; returns how many rows they are."""
        assert start % self.group == 0, "codes begin where a group does"
        check_scales(given["scale"])
        put_codes(self.arrays, start, given["cache"])
        begins = {"scale": start // self.group, "low": start // self.group, "tail": 0}
        for name, first in begins.items():
            self.arrays[name][..., first : first + given[name].shape[-2], :] = given[name]
        length: int = given["cache"].shape[-2] + given["tail"].shape[-2]
        return length

    def exact_position(self, position: int, end: int) -> int:
        whole = self.group
        return position if position >= end // whole * whole else position // whole * whole

    def state(self, end: int) -> dict[str, Array]:
        n_groups = end // self.group
        lengths = {"scale": n_groups, "low": n_groups, "tail": end % self.group}
        coded = n_groups * self.group
        return {name: array[..., : lengths.get(name, coded), :] for name, array in self.arrays.items()}
