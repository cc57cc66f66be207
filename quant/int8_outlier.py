"""Int8 weights and activations with the outlier channels of the input kept apart (LLM.int8, Dettmers et al. 2022, arXiv 2208.07339).

The paper finds the columns with |x| >= 6 anew for every input; here the list is fixed, from calibration, so that the
graph is static: the channels whose largest |x| exceeds `threshold` times the median channel's, the largest first, at
most `largest_share` of them. They are multiplied in floating point, and what remains is rounded per token, to a
step that the outliers no longer set: s = max|x| / 127 over the columns that are not in the list.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlm_edge.errors import UsageProblem
from dlm_edge.quant.grid import Grid, choose_grid, pack_grid
from dlm_edge.quant.rounded import Rounded
from dlm_edge.quant.statistics import InputStatistics
from dlm_edge.quant.treatments import Decision
from dlm_edge.quantized import OutlierColumns, QuantizedTensor, ZeroKind, dequantize

__all__ = ["Int8Config", "dequantize", "outlier_columns", "quantize", "quantize_whole"]

LARGEST_HALF = 65504.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Config:
    """`group_size` is the whole row: in_features of the weight, or 0 for any."""

    bits: int = 8
    group_size: int = 0
    zero: ZeroKind = "symmetric"
    threshold: float = 6.0
    largest_share: float = 0.05

    def __post_init__(self) -> None:
        if self.bits != 8 or self.zero != "symmetric":
            message = f"int8 activations need symmetric 8-bit weights, got {self.bits} bits, zero {self.zero}"
            raise UsageProblem("E-QUANT", message, "use --bits 8 --zero symmetric")
        if self.threshold <= 1 or not 0 <= self.largest_share <= 1:
            message = f"threshold {self.threshold} and share {self.largest_share} select no outliers"
            raise UsageProblem("E-QUANT", message, "a threshold above 1 and a share from 0 to 1")


def outlier_columns(absolute_max: Tensor, config: Int8Config) -> tuple[Tensor, int]:
    """Indices (ascending) of the input channels to keep apart, and how many lie beyond the threshold.

    absolute_max [in_features]: the largest |x| per channel. The median is that of channels that were ever in use.
    """
    used = absolute_max[absolute_max > 0]
    if not len(used):
        return torch.zeros(0, dtype=torch.int64), 0
    beyond = absolute_max > config.threshold * used.median()
    allowed = int(config.largest_share * len(absolute_max))
    kept = absolute_max.argsort(descending=True, stable=True)[: min(int(beyond.sum()), allowed)]
    return kept.sort().values, int(beyond.sum())


def split_decision(absolute_max: Tensor, config: Int8Config) -> Decision:
    """Whether columns of an input with these largest |x| [in_features] are kept apart, and how far they stand out."""
    columns, beyond = outlier_columns(absolute_max, config)
    used = absolute_max[absolute_max > 0]
    peak = f"{float(used.max() / used.median()) if len(used) else 0:.3g} x the median"
    if not beyond:
        return Decision("none", f"largest peak {peak}, split beyond {config.threshold:g}")
    if not len(columns):
        return Decision("none", f"largest peak {peak}, but of {len(absolute_max)} columns none may be split")
    left = f", {beyond - len(columns)} more lie beyond {config.threshold:g}" if beyond > len(columns) else ""
    return Decision("split", f"{len(columns)} of {len(absolute_max)} columns, peaks up to {peak}{left}")


def quantize(name: str, weight: NDArray[np.float32], config: Int8Config, inputs: InputStatistics) -> Rounded:
    """One int8 scale per row of `weight` [out, in]; outlier columns in float16 beside it, their codes zero."""
    check_row(name, weight, config)
    columns, beyond = outlier_columns(inputs.absolute_max, config)
    decision = split_decision(inputs.absolute_max, config)
    if len(columns) and np.abs(weight[:, columns]).max() > LARGEST_HALF:
        decision = Decision("none", "outlier columns hold weights beyond float16 and were not kept apart")
        columns = columns[:0]
    notes = [decision.why] if beyond and not len(columns) else []  # wanted, and not done
    rest = torch.from_numpy(weight).clone()
    rest[:, columns] = 0
    tensor = per_row(rest)
    if not len(columns):
        return Rounded(tensor, notes, treatment=decision)
    kept = weight[:, columns.numpy()].astype(np.float16).astype(np.float32)
    outliers = OutlierColumns(columns.numpy(), np.ascontiguousarray(kept))
    return Rounded(QuantizedTensor(tensor.packed, tensor.scales, 8, outliers=outliers), treatment=decision)


def quantize_whole(
    name: str, weight: NDArray[np.float32], config: Int8Config, inputs: InputStatistics | None
) -> Rounded:
    """One int8 scale per row of `weight` [out, in], no column kept apart."""
    check_row(name, weight, config)
    return Rounded(per_row(torch.from_numpy(weight)))


def check_row(name: str, weight: NDArray[np.float32], config: Int8Config) -> None:
    if config.group_size not in (0, weight.shape[1]):
        message = f"{name}: int8 activations need one scale per output channel, got groups of {config.group_size}"
        raise UsageProblem("E-QUANT", message, f"use --group-size 0 (here {weight.shape[1]})")


def per_row(weight: Tensor) -> QuantizedTensor:
    grid = row_grid(weight)
    return pack_grid(grid.encode(weight[:, None]).reshape(weight.shape), grid, "symmetric")


def row_grid(weight: Tensor) -> Grid:
    """One group for each row of weight [out, in]."""
    return choose_grid(weight[:, None], 8, "symmetric", None)
