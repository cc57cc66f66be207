"""Attention of a clean stream followed by a noisy copy of (part of) it, without a dense [T, T] mask.

A clean query sees clean keys of its own and earlier blocks; a noisy query sees clean keys of strictly
earlier blocks and the noisy keys of its own block. One pass so trains every block of the row at once.
"""

from __future__ import annotations

import torch
from torch import Tensor


class TwoStream:
    """`attend` for rows of `length` clean tokens and their noisy copy from `start` (a block border) on."""

    def __init__(self, length: int, start: int, block: int) -> None:
        self.length, self.block = length, block
        self.positions = torch.cat([torch.arange(length), torch.arange(start, length)])
        clean, noisy = torch.arange(length) // block, torch.arange(start, length) // block
        never = torch.tensor(float("-inf"))
        self.clean_bias = torch.where(clean[None] <= clean[:, None], 0.0, never)
        self.prefix = length - block  # keys that a noisy query may see
        self.noisy_bias = torch.where(clean[None, : self.prefix] < noisy[:, None], 0.0, never)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, groups = self.length, q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        q = q * q.shape[-1] ** -0.5
        k_clean, v_clean = k[:, :, :n], v[:, :, :n]
        clean_scores = q[:, :, :n] @ k_clean.mT + self.clean_bias.to(q.dtype)
        clean_out = clean_scores.softmax(-1) @ v_clean

        q_noisy = q[:, :, n:]
        own = (self.blocks(q_noisy) @ self.blocks(k[:, :, n:]).mT).flatten(2, 3)
        before = q_noisy @ k_clean[:, :, : self.prefix].mT + self.noisy_bias.to(q.dtype)
        weights = torch.cat([before, own], -1).softmax(-1)
        noisy_out = weights[..., : self.prefix] @ v_clean[:, :, : self.prefix]
        own_out = self.blocks(weights[..., self.prefix :]) @ self.blocks(v[:, :, n:])
        return torch.cat([clean_out, noisy_out + own_out.flatten(2, 3)], 2)

    def blocks(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, self.block))
