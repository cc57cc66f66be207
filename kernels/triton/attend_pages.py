# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Attention of the active rows to the prefix, split over ranges of keys (flash-decoding).

Rows of one kv head form one matrix: row i * group + g is the i-th active query of query head g. Every split leaves
its rows' outputs, normalised over its own keys, and their log2-sum-exp2; attend_window.py puts them together.
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from dlm_edge.kernels.triton.cache_loads import load_keys, load_values


@triton.jit
def attend_pages(
    q,  # [n_heads, q_len, head_dim]
    k_cache,  # [n_kv_heads, capacity, head_dim], codes where BITS is not 16, like v_cache
    v_cache,
    k_scale,  # [n_kv_heads, capacity / key_group, head_dim], like k_low; null where BITS is 16, as the next four
    k_low,
    k_tail,  # float32 [n_kv_heads, key_group, head_dim]
    v_scale,  # [n_kv_heads, capacity, head_dim / value_group], like v_low
    v_low,
    row_list,  # from compaction.py, as the next two; not read if not PAGED: all rows and positions then
    page_list,
    counts,
    partial_out,  # float32 [n_splits, n_kv_heads, q_len * group, head_dim]
    partial_lse,  # float32 [n_splits, n_kv_heads, q_len * group], -inf over nothing
    scale_log2,
    q_len,
    group,
    head_dim,
    capacity,
    n_slots,
    page_size,
    start,
    cache_len,
    attn_block,
    key_group,
    value_group,
    BITS: tl.constexpr,
    PAGED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid (n_kv_heads, ceil(q_len * group / BLOCK_M), n_splits)."""
    kv_head, split, n_splits = tl.program_id(0), tl.program_id(2), tl.num_programs(2)
    n_kv_heads = tl.num_programs(0)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n_rows, n_keys = q_len * group, cache_len
    if PAGED:
        n_rows = tl.load(counts + kv_head) * group
        n_keys = tl.load(counts + n_kv_heads + kv_head) * page_size
    if tl.program_id(1) * BLOCK_M >= n_rows:
        return
    wanted = rows < n_rows
    index = rows // group
    if PAGED:
        index = tl.load(row_list + kv_head * q_len + index, mask=wanted, other=0)
    head = kv_head * group + rows % group
    dims = tl.arange(0, BLOCK_D)
    at_q = q + (head * q_len + index)[:, None] * head_dim + dims[None, :]
    query = tl.load(at_q, mask=wanted[:, None] & (dims < head_dim)[None, :], other=0.0)
    visible_end = ((start + index) // attn_block + 1) * attn_block

    first_key = kv_head.to(tl.int64) * capacity
    row_bytes = head_dim // 2 if BITS == 4 else head_dim
    k_cache += first_key * row_bytes
    v_cache += first_key * row_bytes
    if BITS != 16:
        k_scale += first_key // key_group * head_dim
        k_low += first_key // key_group * head_dim
        k_tail += kv_head * key_group * head_dim
        v_scale += first_key * (head_dim // value_group)
        v_low += first_key * (head_dim // value_group)

    row_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    row_sum = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    per_split = tl.cdiv(tl.cdiv(n_keys, n_splits), BLOCK_N) * BLOCK_N
    end = tl.minimum((split + 1) * per_split, n_keys)
    for begin in range(split * per_split, end, BLOCK_N):
        keys = begin + tl.arange(0, BLOCK_N)
        positions = keys
        if PAGED:
            page = tl.load(page_list + kv_head * n_slots + keys // page_size, mask=keys < end, other=0)
            positions = page * page_size + keys % page_size
        seen = (keys < end) & (positions < cache_len)
        seen = seen & ((positions < start) | (positions >= start + q_len))
        k = load_keys(
            k_cache, k_scale, k_low, k_tail, positions, dims, seen, head_dim, cache_len, key_group, query.dtype, BITS
        )
        scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scale_log2
        scores = tl.where(seen[None, :] & (positions[None, :] < visible_end[:, None]), scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)  # inf - inf would be NaN
        weights = tl.exp2(scores - shift[:, None])
        rescale = tl.exp2(row_max - shift)
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        v = load_values(v_cache, v_scale, v_low, positions, dims, seen, head_dim, value_group, query.dtype, BITS)
        out = tl.dot(weights.to(query.dtype), v, out * rescale[:, None], input_precision="ieee")
        row_max = new_max

    at = (split * n_kv_heads + kv_head) * q_len * group + rows
    tl.store(partial_lse + at, row_max + tl.log2(row_sum), mask=wanted)  # log2(0) is -inf
    out = out / tl.where(row_sum > 0.0, row_sum, 1.0)[:, None]
    at_out = at[:, None].to(tl.int64) * head_dim + dims[None, :]
    tl.store(partial_out + at_out, out, mask=wanted[:, None] & (dims < head_dim)[None, :])
