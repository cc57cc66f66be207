"""What QLinear takes beside x, from a quantized weight: all of it there, with no tiles or no length where a part is absent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dlm_edge.kernels.qlinear.layout import BITS, COLUMNS, pack_tiles, to_tiles

LARGEST_K = 65536  # its integer sums fit an int32
GROUP_STEP = 16  # groups are multiples of it, unless there is just one

Floats = NDArray[np.float32]
ZeroInput = Literal["middle", "integer", "float"]


@dataclass(frozen=True, slots=True)
class LinearInputs:
    """In the order and with the meaning of reference.py; every array as the operator takes it."""

    codes: NDArray[np.uint8]
    scales: Floats | NDArray[np.float16]
    zeros: NDArray[np.uint8]
    float_zeros: Floats
    bias: Floats
    outlier_columns: NDArray[np.int64]
    outlier_weights: Floats

    @property
    def zero(self) -> ZeroInput:
        return "integer" if len(self.zeros) else "float" if len(self.float_zeros) else "middle"


def linear_inputs(
    codes: NDArray[np.uint8],
    scales: Floats | NDArray[np.float16],
    *,
    bits: int,
    zeros: NDArray[np.uint8] | Floats | None = None,
    bias: Floats | None = None,
    outlier_columns: NDArray[np.int64] | None = None,
    outlier_weights: Floats | None = None,
) -> LinearInputs:
    """From codes [out, in], one a byte, scales and zeros [out, groups], bias [out], and `outlier_weights` [out, n] of the
    ascending `outlier_columns`, whose codes count for nothing. Scales keep their dtype, float32 or float16."""
    rows, groups = scales.shape
    integer = zeros is not None and zeros.dtype == np.uint8
    columns = np.empty(0, np.int64) if outlier_columns is None else outlier_columns
    weights = np.empty((rows, 0), np.float32) if outlier_weights is None else outlier_weights

    def tiles_or_none(values: NDArray[Any] | None, dtype: type) -> NDArray[Any]:
        return np.empty((0, groups, COLUMNS), dtype) if values is None else to_tiles(values.astype(dtype, copy=False))

    return LinearInputs(
        codes=pack_tiles(codes, bits),
        scales=to_tiles(scales),
        zeros=tiles_or_none(zeros if integer else None, np.uint8),
        float_zeros=tiles_or_none(None if integer else zeros, np.float32),
        bias=np.empty(0, np.float32) if bias is None else bias,
        outlier_columns=columns,
        outlier_weights=to_tiles(weights),
    )


def can_run(in_features: int, group_size: int, bits: int) -> bool:
    """Whether the operator takes such a weight. Three bits lie in the container of four."""
    return bits in BITS and in_features <= LARGEST_K and (group_size % GROUP_STEP == 0 or group_size >= in_features)
