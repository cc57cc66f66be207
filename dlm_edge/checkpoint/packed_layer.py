"""A packed weight of an opened checkpoint, whatever the format on disk: what it is, and how to read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlm_edge.checkpoint.safetensors_header import TensorEntry
from dlm_edge.quantized import LayerRecord, PackedWeight, dequantize


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """`read(first, last)` gives the rows [first, last) of the weight `shape` (out, in).

    `entries` are its tensors by name, `scale_dtype` is the stored type of its scales. Rows can only be asked for at
    multiples of `row_step`: the blocks of a codebook run on from one row into the next.
    """

    record: LayerRecord
    shape: tuple[int, int]
    entries: Mapping[str, TensorEntry]
    scale_dtype: str
    read: Callable[[int, int], PackedWeight]
    row_step: int = 1

    def rows(self, first: int, last: int) -> NDArray[np.float32]:
        """Rows [first, last) in float32; any rows."""
        if first == last:
            return np.empty((0, self.shape[1]), np.float32)
        begin = first - first % self.row_step
        end = min(self.shape[0], last + -last % self.row_step)
        return dequantize(self.read(begin, end))[first - begin : last - begin]
