"""QuantizeRows in plain NumPy: the first rows of a window to codes, so that they leave a step graph as they are stored.

rows   float32 [lead, W, width]: lead is the kv heads of keys and values, 1 for rows of X and of latents
count  how many of the W rows are wanted, from the first one on: none in a pass that stores nothing
group  how many values share a scale, along the row (axis "token") or from row to row ("channel")

-> codes        uint8 [lead, n, width * bits / 8], laid out as in dequantize_rows/reference.py
   scale, low   float16 [lead, n, width / group] ("token") or [lead, n / group, width] ("channel")
   tail         float32 [lead, count - n, width], "channel" only: the rows after the last whole group, exact

where n is `count` for "token" and count // group * group for "channel". The numbers are those of `quantize_groups`.
Operators raise nothing that a caller could tell apart, so a group that cannot be stored is marked in its scale: NaN where
it holds NaN or infinity, infinity where it holds a value beyond float16. Its codes and its low then mean nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dlm_edge.kernels.dequantize_rows.reference import Axis, pack_rows
from dlm_edge.kernels.quantized_pages.reference import (
    LARGEST,
    Codes,
    Floats,
    Halves,
    Scales,
    check_storable,
    quantize_groups,
)


class QuantizedRows(NamedTuple):
    codes: Codes
    scale: Scales
    low: Scales
    tail: Floats  # of no rows for "token"


def quantize_rows(rows: Floats, count: int, group: int, *, bits: int, axis: Axis) -> QuantizedRows:
    """As the file says; `group` divides the width of a row for "token"."""
    lead, length, width = rows.shape
    assert 0 <= count <= length, "more rows than the window has"
    n = count if axis == "token" else count // group * group
    split = (lead, n, width // group, group) if axis == "token" else (lead, n // group, group, width)
    along = -1 if axis == "token" else -2
    grouped = rows[:, :n].reshape(split)
    smallest, largest = grouped.min(along), grouped.max(along)
    unsound = ~(np.isfinite(smallest) & np.isfinite(largest))
    beyond = ~unsound & (np.maximum(-smallest, largest) > LARGEST)
    storable = np.where(np.expand_dims(unsound | beyond, along), np.float32(0), grouped)
    codes, scale, low = quantize_groups(storable, bits, along)
    scale[unsound], scale[beyond] = np.nan, np.inf
    shape = (lead, n, width * bits // 8)  # packing cannot tell the length of a row from no rows
    packed = pack_rows(codes.reshape(lead, n, width), bits) if codes.size else np.empty(shape, np.uint8)
    return QuantizedRows(packed, scale, low, rows[:, n:count])


def check_scales(scale: Halves) -> None:
    """Raises JobError as `quantize_groups` does, for a scale that marks what cannot be stored."""
    check_storable(is_finite=not np.isnan(scale).any(), is_half=not np.isinf(scale).any())
