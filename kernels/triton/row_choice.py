# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""How far every query moved, and which rows of the window attend afresh."""

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

# The modes of kernels/select_pages/reference.py. Triton code may read globals only as constexpr.
DENSE = tl.constexpr(0)
SELECT = tl.constexpr(1)
REUSE_ROWS = tl.constexpr(2)
REUSE_PAGES = tl.constexpr(3)
DENSE_KEEP = tl.constexpr(4)
SELECT_ROWS = tl.constexpr(5)


@triton.jit
def row_movement(
    q,  # [n_heads, q_len, head_dim]
    q_last,  # [n_heads, n_state_rows, head_dim], like q_stored
    q_stored,
    movement,  # float32 [3, n_kv_heads, n_rows]: |q - q_last|^2, |q - q_stored|^2, |q_stored|^2, summed over heads
    q_len,
    n_state_rows,
    n_rows,
    group,
    head_dim,
    BLOCK_D: tl.constexpr,
):
    """Grid (n_kv_heads, n_rows)."""
    kv_head, row = tl.program_id(0), tl.program_id(1)
    dims = tl.arange(0, BLOCK_D)
    inside = dims < head_dim
    since_last, since_stored, norm = 0.0, 0.0, 0.0
    for i in range(group):
        head = kv_head * group + i
        at_state = (head * n_state_rows + row) * head_dim + dims
        now = tl.load(q + (head * q_len + row) * head_dim + dims, mask=inside, other=0.0).to(tl.float32)
        last = tl.load(q_last + at_state, mask=inside, other=0.0).to(tl.float32)
        stored = tl.load(q_stored + at_state, mask=inside, other=0.0).to(tl.float32)
        since_last += tl.sum((now - last) * (now - last))
        since_stored += tl.sum((now - stored) * (now - stored))
        norm += tl.sum(stored * stored)
    plane = tl.num_programs(0) * n_rows
    at = movement + kv_head * n_rows + row
    tl.store(at, since_last)
    tl.store(at + plane, since_stored)
    tl.store(at + 2 * plane, norm)


@triton.jit
def choose_rows(
    movement,  # as above; read in modes SELECT and SELECT_ROWS
    active,  # uint8 [n_kv_heads, q_len], written
    pages,  # uint8 [n_kv_heads, n_slots], written: what is selected before any page is chosen
    q_len,
    n_rows,
    n_slots,
    n_valid,
    mode,
    n_active,
    per_head,
    since_stored,
    drift,
    BLOCK_R: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (n_kv_heads). n_rows, those with state, is at most BLOCK_R; all rows after them are active."""
    kv_head, n_kv_heads = tl.program_id(0), tl.num_programs(0)
    rows = tl.arange(0, BLOCK_R)
    known = rows < n_rows
    chosen = known & (mode != REUSE_ROWS)
    if (mode == SELECT) | (mode == SELECT_ROWS):
        begin = tl.where(per_head != 0, kv_head, 0)
        end = tl.where(per_head != 0, kv_head + 1, n_kv_heads)
        last = tl.zeros((BLOCK_R,), tl.float32)
        away = tl.zeros((BLOCK_R,), tl.float32)
        norm = tl.zeros((BLOCK_R,), tl.float32)
        plane = n_kv_heads * n_rows
        for head in range(begin, end):
            at = movement + head * n_rows + rows
            last += tl.load(at, mask=known, other=0.0)
            away += tl.load(at + plane, mask=known, other=0.0)
            norm += tl.load(at + 2 * plane, mask=known, other=0.0)
        moved = tl.where(since_stored != 0, away, last)
        rank = tl.zeros((BLOCK_R,), tl.int32)
        for j in range(n_rows):
            other = tl.sum(tl.where(rows == j, moved, 0.0))
            rank += ((other > moved) | ((other == moved) & (j < rows))).to(tl.int32)
        chosen = known & (rank < n_active)
        if drift < float("inf"):
            chosen = chosen | (known & (away > drift * norm))
    tl.store(active + kv_head * q_len + rows, chosen.to(tl.uint8), mask=known)

    offsets = tl.arange(0, BLOCK)
    for begin in range(n_rows, q_len, BLOCK):
        tl.store(active + kv_head * q_len + begin + offsets, 1, mask=begin + offsets < q_len)
    whole = (mode == DENSE) | (mode == DENSE_KEEP) | ((mode == REUSE_ROWS) & (q_len > n_rows))
    for begin in range(0, n_slots, BLOCK):
        slots = begin + offsets
        tl.store(pages + kv_head * n_slots + slots, ((slots < n_valid) & whole).to(tl.uint8), mask=slots < n_slots)
