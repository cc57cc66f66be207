"""PatternAttention on PyTorch tensors, as launch.py has the operators over a cache.

kernels/csrc/cuda_pattern_attention.cpp makes the same launches from compiled files.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dlm_edge.kernels.select_pages.reference import DENSE_KEEP, REUSE_PAGES, Policy
from dlm_edge.kernels.triton import tiles
from dlm_edge.kernels.triton.attend_blocks import attend_blocks
from dlm_edge.kernels.triton.compaction import compact_blocks
from dlm_edge.kernels.triton.pattern_choice import choose_blocks, count_pairs, measure_blocks


def pattern_attention(
    q: Tensor, k: Tensor, v: Tensor, policy: Policy, pattern: Tensor, *, scale: float = 0.0
) -> tuple[Tensor, Tensor]:
    """out [1, q_len, n_heads * head_dim] and stats, as kernels/pattern_attention/reference.py, with `pattern` rewritten
    in place."""
    n_heads, q_len, head_dim = q.shape[1:]
    n_kv_heads, n_slots, size = k.shape[1], pattern.shape[1], min(policy.page_size, q_len)
    n_blocks, group, block_d = -(-q_len // size), n_heads // n_kv_heads, tiles.head_block(head_dim)
    scale_log2 = (scale or 1 / math.sqrt(head_dim)) * math.log2(math.e)
    listed = policy.mode == REUSE_PAGES
    lists: tuple[Any, Any] = (None, None)
    if listed:
        lists = (_like(q, torch.int32, n_heads, n_blocks, n_blocks), _like(q, torch.int32, n_heads, n_blocks))
        compact_blocks[n_heads, n_blocks](
            pattern, *lists, n_blocks, n_slots, BLOCK=tiles.SCAN_BLOCK, num_warps=4
        )  # fmt: skip
    out, row_lse = _like(q, q.dtype, 1, q_len, n_heads * head_dim), _like(q, torch.float32, n_heads, q_len)
    # Without lists the sequence is one block of queries that reads everything.
    rows, n_row_blocks = (size, n_blocks) if listed else (q_len, 1)
    block_m = tiles.block_rows(rows)
    attend_blocks[n_row_blocks * -(-rows // block_m), n_heads](
        q, k, v, *lists, row_lse, out, scale_log2, q_len, group, head_dim, n_row_blocks, rows,
        LISTED=listed, BLOCK_M=block_m, BLOCK_N=tiles.key_block(block_d), BLOCK_D=block_d,
        num_warps=tiles.warps(block_d, block_m), num_stages=2,
    )  # fmt: skip
    if policy.mode == DENSE_KEEP:
        masses, block_m = _like(q, torch.float32, n_heads, n_blocks, n_blocks), tiles.block_rows(size)
        measure_blocks[n_blocks, n_blocks, n_heads](
            q, k, row_lse, masses, scale_log2, q_len, group, head_dim, size,
            BLOCK_M=block_m, BLOCK_N=tiles.MEASURED_BLOCK_KEYS, BLOCK_D=block_d, num_warps=4,
        )  # fmt: skip
        choose_blocks[n_slots, n_heads](
            masses, pattern, q_len, n_blocks, n_slots, size, policy.sink, policy.n_pages, policy.n_active,
            BLOCK=tiles.pattern_block(n_slots), num_warps=4,
        )  # fmt: skip
    stats = _like(q, torch.float32, 4)
    count_pairs[(1,)](
        lists[1], stats, n_heads * n_blocks if listed else 0, n_kv_heads * q_len, n_heads * n_blocks**2,
        BLOCK=tiles.SCAN_BLOCK, num_warps=4,
    )  # fmt: skip
    return out, stats


def _like(tensor: Tensor, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=tensor.device)
