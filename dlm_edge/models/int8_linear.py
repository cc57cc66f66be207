"""A linear layer whose input is rounded to int8 per token, as integer runtimes do it: the definition of W8A8 here.

    scale = max |x| over the features of one token / 127, or 1 where the token is zero
    codes = clip(round_half_even(x / scale), -127, 127)
    y     = (codes * scale) W^T + b

The weight is the dequantized one, so the product is the integer one up to float32 rounding. Runtimes with unsigned
inputs store codes + 128 with zero point 128: the same grid. Outlier columns (LLM.int8, arXiv 2208.07339) bypass
it: they neither enter the scale nor are rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST_CODE = 127


def round_to_int8(x: Tensor) -> Tensor:
    """x [..., features] on the int8 grid of each token, in the dtype of x."""
    peak = x.abs().amax(-1, keepdim=True)
    scale = torch.where(peak > 0, peak / LARGEST_CODE, 1.0)
    return (x / scale).round().clamp(-LARGEST_CODE, LARGEST_CODE) * scale


class Int8ActivationLinear(nn.Module):
    """In place of `nn.Linear`; `weight` [out, in] and `bias` [out] are parameters under the same names."""

    def __init__(self, weight: Tensor, bias: Tensor | None, outlier_columns: Sequence[int] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.is_outlier: Tensor | None
        mask = None
        if len(outlier_columns):
            mask = torch.zeros(weight.shape[1], dtype=torch.bool)
            mask[torch.as_tensor(outlier_columns)] = True
        self.register_buffer("is_outlier", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_outlier is None:
            return F.linear(round_to_int8(x), self.weight, self.bias)
        ordinary = x.masked_fill(self.is_outlier, 0.0)
        return F.linear(torch.where(self.is_outlier, x, round_to_int8(ordinary)), self.weight, self.bias)


def with_int8_activations(linear: nn.Module, outlier_columns: Sequence[int] = ()) -> Int8ActivationLinear:
    """The same weights behind rounded inputs."""
    assert isinstance(linear.weight, Tensor) and (linear.bias is None or isinstance(linear.bias, Tensor))
    return Int8ActivationLinear(linear.weight.data, None if linear.bias is None else linear.bias.data, outlier_columns)
