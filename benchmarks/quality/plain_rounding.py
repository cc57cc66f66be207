"""Plain rounding to nearest, apart from all code of ours that is measured: the baseline of the table.

Asymmetric: the range of a group from its least to its greatest weight, zero included, in 2**bits codes with an integer
zero. Symmetric: codes -2**(bits-1) + 1 ... 2**(bits-1) - 1 around zero. No search; scales in float16, as all store them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def plain_rtn(weight: Tensor, bits: int, group_size: int, *, asymmetric: bool = False) -> Tensor:
    """The dequantized `weight` [out, in]; group_size 0: one group per output channel."""
    groups = weight.reshape(len(weight), -1, group_size or weight.shape[1])
    if not asymmetric:
        largest = 2 ** (bits - 1) - 1
        scale = to_half(groups.abs().amax(-1, keepdim=True) / largest)
        return ((groups / scale).round().clamp(-largest, largest) * scale).reshape(weight.shape)
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    last = 2**bits - 1
    scale = to_half((high - low) / last)
    zero = (-low / scale).round().clamp(0, last)
    return (((groups / scale).round() + zero).clamp(0, last) - zero).mul(scale).reshape(weight.shape)


def to_half(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0).half().float()
