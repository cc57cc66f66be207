# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Attention inside the window, and its merge with the prefix by log-sum-exp (FlashBlock, arXiv 2602.05305).

Active rows take the prefix result from the splits of attend_pages.py and store it; the others take what is stored.
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def merge(out_a, lse_a, out_b, lse_b):
    """Outputs [rows, dims] over two disjoint sets of keys as one, with its log2-sum-exp2; -inf on both sides stays."""
    largest = tl.maximum(lse_a, lse_b)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    share_a, share_b = tl.exp2(lse_a - shift), tl.exp2(lse_b - shift)
    total = share_a + share_b
    safe = tl.where(total > 0.0, total, 1.0)
    return out_a * (share_a / safe)[:, None] + out_b * (share_b / safe)[:, None], shift + tl.log2(total)


@triton.jit
def attend_window(
    q,  # [n_heads, q_len, head_dim]
    k,  # [n_kv_heads, q_len, head_dim], like v
    v,
    active,  # uint8 [n_kv_heads, q_len], as row_place from compaction.py; not read if not KEEP: all rows are active
    row_place,
    partial_out,  # float32 [n_splits, n_kv_heads, q_len * group, head_dim]
    partial_lse,
    prefix_out,  # float32 [n_heads, n_state_rows, head_dim], read and rewritten if KEEP
    prefix_lse,  # float32 [n_heads, n_state_rows], natural logarithm
    row_lse,  # float32 [n_heads, q_len], written if KEEP: log2-sum-exp2 over the prefix of every row
    out,  # [q_len, n_heads * head_dim]
    scale_log2,
    q_len,
    group,
    head_dim,
    n_state_rows,
    n_splits,
    first,  # start modulo attn_block: where the window begins in its block
    attn_block,
    KEEP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid (n_heads, ceil(q_len / BLOCK_M))."""
    head, n_heads = tl.program_id(0), tl.num_programs(0)
    kv_head = head // group
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    inside = rows < q_len
    tile = inside[:, None] & (dims < head_dim)[None, :]
    at_row = (head * q_len + rows)[:, None] * head_dim + dims[None, :]
    query = tl.load(q + at_row, mask=tile, other=0.0)

    fresh, place = inside, rows
    if KEEP:
        fresh = inside & (tl.load(active + kv_head * q_len + rows, mask=inside, other=0) != 0)
        place = tl.load(row_place + kv_head * q_len + rows, mask=inside, other=0)
    prefix = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    lse = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    for split in range(n_splits):
        at = (split * (n_heads // group) + kv_head) * q_len * group + place * group + head % group
        part_lse = tl.load(partial_lse + at, mask=fresh, other=float("-inf"))
        at_out = at[:, None].to(tl.int64) * head_dim + dims[None, :]
        part = tl.load(partial_out + at_out, mask=fresh[:, None] & tile, other=0.0)
        prefix, lse = merge(prefix, lse, part, part_lse)
    if KEEP:
        stored = inside & (rows < n_state_rows)
        at_state = head * n_state_rows + rows
        at_state_out = at_state[:, None] * head_dim + dims[None, :]
        reused = stored & (fresh == 0)
        kept = tl.load(prefix_out + at_state_out, mask=reused[:, None] & tile, other=0.0)
        kept_lse = tl.load(prefix_lse + at_state, mask=reused, other=float("-inf")) * LOG2_E
        prefix = tl.where(reused[:, None], kept, prefix)
        lse = tl.where(reused, kept_lse, lse)
        renewed = stored & fresh
        tl.store(prefix_out + at_state_out, prefix, mask=renewed[:, None] & tile)
        tl.store(prefix_lse + at_state, lse / LOG2_E, mask=renewed)
        tl.store(row_lse + head * q_len + rows, lse, mask=inside)

    # Within the window the key at j is visible to the query at i when (first + j) // block <= (first + i) // block.
    visible_end = ((first + rows) // attn_block + 1) * attn_block - first
    row_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    row_sum = tl.zeros((BLOCK_M,), tl.float32)
    window = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    end = tl.minimum(q_len, tl.max(visible_end))
    for begin in range(0, end, BLOCK_N):
        keys = begin + tl.arange(0, BLOCK_N)
        at_key = (kv_head * q_len + keys)[:, None] * head_dim + dims[None, :]
        held = (keys < q_len)[:, None] & (dims < head_dim)[None, :]
        key = tl.load(k + at_key, mask=held, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale_log2
        visible = (keys < q_len)[None, :] & (keys[None, :] < visible_end[:, None])
        scores = tl.where(visible, scores, float("-inf"))
        # The first tile holds key 0, which every row sees: row_max is finite from there on.
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        weights = tl.exp2(scores - new_max[:, None])
        rescale = tl.exp2(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        value = tl.load(v + at_key, mask=held, other=0.0)
        window = tl.dot(weights.to(query.dtype), value, window * rescale[:, None], input_precision="ieee")
        row_max = new_max
    joined, _ = merge(prefix, lse, window / row_sum[:, None], row_max + tl.log2(row_sum))
    at = rows[:, None] * (n_heads * head_dim) + head * head_dim + dims[None, :]
    tl.store(out + at, joined.to(query.dtype), mask=tile)
