# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Which blocks of keys every block of queries keeps, from a dense step's softmax (SparseD, arXiv 2509.24014)."""

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from dlm_edge.kernels.triton.largest import largest, ordered_bits
from dlm_edge.kernels.triton.selection_end import count_ones


@triton.jit
def measure_blocks(
    q,  # [n_heads, q_len, head_dim]
    k,  # [n_kv_heads, q_len, head_dim]
    row_lse,  # float32 [n_heads, q_len], from attend_blocks.py
    masses,  # float32 [n_heads, n_blocks, n_blocks], written: softmax weights summed over the pair of blocks
    scale_log2,
    q_len,
    group,
    head_dim,
    block_size,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid (n_blocks, n_blocks, n_heads): the block of keys, the block of queries, the query head.

    The scores are computed a second time: one step of a request is measured, and to keep its weights would take
    q_len * q_len values for every head.
    """
    key_block, query_block, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_key, first_row = key_block * block_size, query_block * block_size
    last_key, last_row = tl.minimum(first_key + block_size, q_len), tl.minimum(first_row + block_size, q_len)
    k += head // group * q_len * head_dim
    dims = tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for row_begin in range(first_row, last_row, BLOCK_M):
        rows = row_begin + tl.arange(0, BLOCK_M)
        at_row = (head * q_len + rows)[:, None] * head_dim + dims[None, :]
        query = tl.load(q + at_row, mask=(rows < last_row)[:, None] & (dims < head_dim)[None, :], other=0.0)
        lse = tl.load(row_lse + head * q_len + rows, mask=rows < last_row, other=float("inf"))  # weights become 0
        for key_begin in range(first_key, last_key, BLOCK_N):
            keys = key_begin + tl.arange(0, BLOCK_N)
            at_key = keys[:, None] * head_dim + dims[None, :]
            key = tl.load(k + at_key, mask=(keys < last_key)[:, None] & (dims < head_dim)[None, :], other=0.0)
            scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale_log2
            weights = tl.exp2(scores - lse[:, None])
            total += tl.sum(tl.where((keys < last_key)[None, :], weights, 0.0), 1)
    at = (head * tl.num_programs(1) + query_block) * tl.num_programs(0) + key_block
    tl.store(masses + at, tl.sum(total))


@triton.jit
def choose_blocks(
    masses,  # as above
    pattern,  # uint8 [n_heads, n_slots, n_slots], every element is written: zeros beyond n_blocks
    q_len,
    n_blocks,
    n_slots,
    block_size,
    n_prompt,
    n_prompt_kept,
    n_others_kept,
    BLOCK: tl.constexpr,
):
    """Grid (n_slots, n_heads). n_slots is at most BLOCK. Blocks below n_prompt are chosen apart from the others.

    Weights count by their mean; as all rows of a block of queries have the same number, only the keys' is divided by.
    """
    query_block, head = tl.program_id(0), tl.program_id(1)
    slots = tl.arange(0, BLOCK)
    held = slots < tl.where(query_block < n_blocks, n_blocks, 0)
    lengths = tl.minimum(q_len - tl.where(held, slots, 0) * block_size, block_size)
    at = (head * n_blocks + query_block) * n_blocks + slots
    keys = ordered_bits(tl.load(masses + at, mask=held, other=0.0) / lengths.to(tl.float32))
    kept = largest(keys, held & (slots < n_prompt), n_prompt_kept)
    kept = kept | largest(keys, held & (slots >= n_prompt), n_others_kept)
    at_pattern = pattern + (head * n_slots + query_block) * n_slots + slots
    tl.store(at_pattern, kept.to(tl.uint8), mask=slots < n_slots)


@triton.jit
def count_pairs(
    counts,  # int32 [n_counts], from compaction.py; not read where n_counts is 0: every pair was read then
    stats,  # float32 [4]
    n_counts,
    n_rows,
    n_pairs,
    BLOCK: tl.constexpr,
):
    """Grid (1)."""
    n_read = count_ones(counts, n_counts, BLOCK)
    tl.store(stats, n_rows.to(tl.float32))
    tl.store(stats + 1, tl.where(n_counts > 0, n_read, n_pairs).to(tl.float32))
    tl.store(stats + 2, n_pairs.to(tl.float32))
    tl.store(stats + 3, 0.0)
