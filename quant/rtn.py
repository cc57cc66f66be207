"""Round-to-nearest weights: no calibration data, the baseline every other method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dlm_edge.quant.grid import Search, check_fits, check_grid, choose_grid, pack_grid
from dlm_edge.quant.statistics import InputStatistics
from dlm_edge.quantized import QuantizedTensor, ZeroKind, dequantize

__all__ = ["RtnConfig", "dequantize", "quantize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RtnConfig:
    """`search` None keeps every weight within half a step; a search clips where that lowers the squared error."""

    bits: int = 4
    group_size: int = 64
    zero: ZeroKind = "symmetric"
    search: Search | None = Search()

    def __post_init__(self) -> None:
        check_grid(self.bits, self.group_size, self.zero)


def quantize(
    name: str, weight: NDArray[np.float32], config: RtnConfig, inputs: InputStatistics | None = None
) -> QuantizedTensor:
    """Quantize `weight` [out_features, in_features] in groups along in_features; `name` is for messages.

    With `inputs` the search weighs each column by the second moment of its activations (what llama.cpp calls an
    importance matrix). A group of zeros stays exactly zero. Raises E-QUANT when in_features is not a multiple of the
    group size.
    """
    out_features, in_features = weight.shape
    check_fits(name, in_features, config.group_size)
    groups = torch.from_numpy(weight).reshape(out_features, -1, config.group_size)
    importance = None if inputs is None else column_importance(inputs).reshape(-1, config.group_size)
    grid = choose_grid(groups, config.bits, config.zero, config.search, importance)
    return pack_grid(grid.encode(groups).reshape(weight.shape), grid, config.zero)


def column_importance(inputs: InputStatistics) -> torch.Tensor:
    """[in] float32, mean 1. A column without activations keeps a little weight: its group may have nothing else."""
    moment = inputs.second_moment.diagonal()
    mean = moment.mean()
    if mean <= 0:
        return torch.ones(len(moment))
    return (moment / mean).clamp_min(1e-6).float()
