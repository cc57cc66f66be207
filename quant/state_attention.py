"""Who sees whom when clean text and noisy copies of its blocks share one pass, and texts share one row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlm_edge.models.transformer import Attend, dense_attention


def stream_mask(positions: Tensor, copy: Tensor, block: int) -> Tensor:
    """Bool [query, key] over tokens at `positions` [seq] that belong to the clean text (copy 0) or to a noisy copy.

    Clean tokens see clean ones up to the end of their own block; noisy tokens see clean ones of strictly earlier
    blocks and their own copy of their own block. So each noisy block is computed as if it were the last, after
    clean ones (the two streams of BD3-LM, Arriola et al. 2025, arXiv 2503.09573).
    """
    blocks, noisy = positions // block, copy > 0
    earlier = torch.where(noisy[:, None], blocks[None] < blocks[:, None], blocks[None] <= blocks[:, None])
    own = (copy[None] == copy[:, None]) & (blocks[None] == blocks[:, None])
    return torch.where(noisy[None], own, earlier)


def packed_attention(lengths: Sequence[int], masks: Sequence[Tensor | None]) -> Attend:
    """Attention inside each of the segments that lie one after another in a row; none sees another."""
    segments = [dense_attention(mask) for mask in masks]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(segments, *(torch.split(x, list(lengths), 2) for x in (q, k, v)), strict=True)
        return torch.cat([segment(*part) for segment, *part in parts], 2)

    return attend
