"""Round-to-nearest weights: no calibration data, the baseline every other method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dlm_edge.quant.grid import Search, check_fits, check_grid, choose_scales, encode, pack_codes
from dlm_edge.quantized import QuantizedTensor, dequantize

__all__ = ["RtnConfig", "dequantize", "quantize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RtnConfig:
    """`search` None keeps every weight within half a step; a search clips where that lowers the squared error."""

    bits: int = 4
    group_size: int = 64
    search: Search | None = Search()

    def __post_init__(self) -> None:
        check_grid(self.bits, self.group_size)


def quantize(name: str, weight: NDArray[np.float32], config: RtnConfig) -> QuantizedTensor:
    """Quantize `weight` [out_features, in_features] in groups along in_features; `name` is for messages.

    A group of zeros stays exactly zero. Raises E-QUANT when in_features is not a multiple of the group size.
    """
    out_features, in_features = weight.shape
    check_fits(name, in_features, config.group_size)
    groups = torch.from_numpy(weight).reshape(out_features, -1, config.group_size)
    scales = choose_scales(groups, config.bits, config.search)
    return pack_codes(encode(groups, scales, config.bits).reshape(weight.shape), scales, config.bits)
