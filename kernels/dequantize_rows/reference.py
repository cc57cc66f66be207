"""DequantizeRows in plain NumPy: some rows of a quantized matrix, in any order; and the encoder of its layouts.

What XQuant (arXiv 2508.10395) stores of a position is one row: the input of the attention layer, or its latents. The
rows of the selected pages come back in float32, and linear nodes of the graph make keys and values of them.

codes  uint8 [capacity, width * bits / 8]: lowest bits first; three bits as a plane of 2-bit codes (width / 4 bytes)
       followed by a plane of high bits (width / 8 bytes)
axis   "token":   scale and low float16 [capacity, width / group], a group is consecutive values of one row
       "channel": scale and low float16 [capacity / group, width], a group is consecutive rows of one channel
tail   float32 [n_tail, width], n_tail 0 or, for "channel", the group: the exact rows of positions
       [n, cache_len), n = cache_len // n_tail * n_tail, whose codes are not read; without a tail, n = cache_len
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlm_edge.kernels.quantized_pages.reference import Codes, Floats, Halves, Quantized, quantize_groups, unpack
from dlm_edge.quantized import pack_codes

Axis = Literal["token", "channel"]
BITS = (8, 4, 3, 2)


def dequantize_rows(
    codes: Codes,
    scale: Halves,
    low: Halves,
    tail: Floats,
    rows: NDArray[np.int64],
    cache_len: int,
    *,
    bits: int,
    axis: Axis,
) -> Floats:
    """float32 [len(rows), width]; every row is in [0, cache_len), repeated or not, in any order."""
    assert not rows.size or (rows.min() >= 0 and rows.max() < cache_len), "a row that is not stored"
    n_tail, capacity = len(tail), len(codes)
    n = cache_len // n_tail * n_tail if n_tail else cache_len
    stored = rows[rows < n]
    fields = unpack_rows(codes[stored], bits).astype(np.float32)
    if axis == "token":
        grouped = fields.reshape(len(stored), scale.shape[1], fields.shape[1] // scale.shape[1])
        values = grouped * scale[stored, :, None].astype(np.float32) + low[stored, :, None].astype(np.float32)
    else:
        of_group = stored // (capacity // len(scale))
        values = fields * scale[of_group].astype(np.float32) + low[of_group].astype(np.float32)
    found = np.empty((len(rows), fields.shape[1]), np.float32)
    found[rows < n] = values.reshape(fields.shape)
    found[rows >= n] = tail[rows[rows >= n] - n]
    return found


def encode_rows(values: Floats, *, bits: int, axis: Axis, group: int) -> Quantized:
    """Codes, scale and low of rows [..., length, width], laid out as above; `group` divides what it extends along.

    Raises JobError like `quantize_groups`, whose error bound holds.
    """
    *lead, length, width = values.shape
    if axis == "token":
        codes, scale, low = quantize_groups(values.reshape(*lead, length, width // group, group), bits, -1)
    else:
        codes, scale, low = quantize_groups(values.reshape(*lead, length // group, group, width), bits, -2)
    return Quantized(pack_rows(codes.reshape(values.shape), bits), scale, low)


def pack_rows(codes: Codes, bits: int) -> Codes:
    """Codes [..., width], one a byte, to [..., width * bits / 8]; width fills whole bytes of every plane."""
    assert codes.shape[-1] % width_multiple(bits) == 0, "rows end inside a byte"
    if bits != 3:
        return pack_codes(codes, bits)
    return np.concatenate([pack_codes(codes & np.uint8(3), 2), pack_codes(codes >> np.uint8(2), 1)], -1)


def unpack_rows(packed: Codes, bits: int) -> Codes:
    """The inverse of `pack_rows`."""
    if bits != 3:
        return unpack(packed, bits)
    low_bytes = packed.shape[-1] * 2 // 3
    return unpack(packed[..., :low_bytes], 2) | (unpack(packed[..., low_bytes:], 1) << np.uint8(2))


def width_multiple(bits: int) -> int:
    """What the width of a row must be a multiple of, so that rows begin at whole bytes."""
    return 8 if bits == 3 else 8 // bits
