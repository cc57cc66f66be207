# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Attention of a sequence to itself, all of it or the kept pairs of blocks (SparseD, arXiv 2509.24014).

Patterns belong to query heads, so heads that share keys do not share tiles. The rows of a tile belong to one block of
queries and read the same list of key blocks; a tile of keys may span several of them.
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]


@triton.jit
def attend_blocks(
    q,  # [n_heads, q_len, head_dim]
    k,  # [n_kv_heads, q_len, head_dim], like v
    v,
    block_list,  # from compaction.py, like counts; not read if not LISTED: every row reads every key then
    counts,
    row_lse,  # float32 [n_heads, q_len], written: log2-sum-exp2, -inf over nothing
    out,  # [q_len, n_heads * head_dim]; zeros over nothing
    scale_log2,
    q_len,
    group,
    head_dim,
    n_blocks,
    block_size,
    LISTED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid (n_blocks * ceil(block_size / BLOCK_M), n_heads)."""
    head, n_heads = tl.program_id(1), tl.num_programs(1)
    n_tiles = tl.cdiv(block_size, BLOCK_M)
    block, tile = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles
    rows = block * block_size + tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = (rows < (block + 1) * block_size) & (rows < q_len)
    dims = tl.arange(0, BLOCK_D)
    held = inside[:, None] & (dims < head_dim)[None, :]
    query = tl.load(q + (head * q_len + rows)[:, None] * head_dim + dims[None, :], mask=held, other=0.0)
    k += head // group * q_len * head_dim
    v += head // group * q_len * head_dim
    n_keys = q_len
    if LISTED:
        n_keys = tl.load(counts + head * n_blocks + block) * block_size
        block_list += (head * n_blocks + block) * n_blocks

    row_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    row_sum = tl.zeros((BLOCK_M,), tl.float32)
    found = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for begin in range(0, n_keys, BLOCK_N):
        keys = begin + tl.arange(0, BLOCK_N)
        positions = keys
        if LISTED:
            listed = tl.load(block_list + keys // block_size, mask=keys < n_keys, other=0)
            positions = listed * block_size + keys % block_size
        seen = (keys < n_keys) & (positions < q_len)
        at_key = positions[:, None] * head_dim + dims[None, :]
        readable = seen[:, None] & (dims < head_dim)[None, :]
        key = tl.load(k + at_key, mask=readable, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale_log2
        scores = tl.where(seen[None, :], scores, float("-inf"))
        # The first tile begins with a key that every row sees: row_max is finite from there on.
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        weights = tl.exp2(scores - new_max[:, None])
        rescale = tl.exp2(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        value = tl.load(v + at_key, mask=readable, other=0.0)
        found = tl.dot(weights.to(query.dtype), value, found * rescale[:, None], input_precision="ieee")
        row_max = new_max
    tl.store(row_lse + head * q_len + rows, row_max + tl.log2(row_sum), mask=inside)  # log2(0) is -inf
    found = found / tl.where(row_sum > 0.0, row_sum, 1.0)[:, None]
    at = rows[:, None] * (n_heads * head_dim) + head * head_dim + dims[None, :]
    tl.store(out + at, found.to(query.dtype), mask=held)
