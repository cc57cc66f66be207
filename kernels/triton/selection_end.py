# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""What SelectPages leaves behind: the queries of this step, and counts of what was selected."""

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]


@triton.jit
def count_ones(flags, n, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.int32)
    offsets = tl.arange(0, BLOCK)
    for begin in range(0, n, BLOCK):
        total += tl.load(flags + begin + offsets, mask=begin + offsets < n, other=0).to(tl.int32)
    return tl.sum(total)


@triton.jit
def keep_queries(
    q,  # [n_heads, q_len, head_dim]
    active,  # uint8 [n_kv_heads, q_len]
    pages,  # uint8 [n_kv_heads, n_slots]
    q_last,  # [n_heads, n_state_rows, head_dim], like q_stored: rewritten
    q_stored,
    stats,  # float32 [4]
    q_len,
    n_state_rows,
    n_rows,
    group,
    head_dim,
    n_kv_heads,
    n_slots,
    n_valid,
    reads_bounds,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (n_kv_heads * group, n_rows + 1): the last column's first program counts, the others store one query each."""
    head, row = tl.program_id(0), tl.program_id(1)
    if row < n_rows:
        dims = tl.arange(0, BLOCK_D)
        inside = dims < head_dim
        query = tl.load(q + (head * q_len + row) * head_dim + dims, mask=inside)
        at = (head * n_state_rows + row) * head_dim + dims
        tl.store(q_last + at, query, mask=inside)
        if tl.load(active + (head // group) * q_len + row) != 0:
            tl.store(q_stored + at, query, mask=inside)
    elif head == 0:
        tl.store(stats, count_ones(active, n_kv_heads * q_len, BLOCK).to(tl.float32))
        tl.store(stats + 1, count_ones(pages, n_kv_heads * n_slots, BLOCK).to(tl.float32))
        tl.store(stats + 2, (n_kv_heads * n_valid).to(tl.float32))
        tl.store(stats + 3, reads_bounds.to(tl.float32))
