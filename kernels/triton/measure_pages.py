# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The share of the prefix attention that each page holds, the largest over the active rows (MAGE, arXiv 2602.14209)."""

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from dlm_edge.kernels.triton.cache_loads import load_keys


@triton.jit
def measure_pages(
    q,  # [n_heads, q_len, head_dim]
    k_cache,  # as in attend_pages.py, like the next three
    k_scale,
    k_low,
    k_tail,
    active,  # uint8 [n_kv_heads, q_len]
    pages,  # uint8 [n_kv_heads, n_slots]
    row_lse,  # float32 [n_heads, q_len], from attend_window.py
    masses,  # float32 [n_kv_heads, n_slots], every element is written
    scale_log2,
    q_len,
    group,
    head_dim,
    capacity,
    n_slots,
    page_size,
    start,
    cache_len,
    key_group,
    BITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid (n_slots, n_kv_heads)."""
    page, kv_head = tl.program_id(0), tl.program_id(1)
    at_mass = masses + kv_head * n_slots + page
    if tl.load(pages + kv_head * n_slots + page) == 0:
        tl.store(at_mass, 0.0)
        return
    first_key = kv_head.to(tl.int64) * capacity
    k_cache += first_key * (head_dim // 2 if BITS == 4 else head_dim)
    if BITS != 16:
        k_scale += first_key // key_group * head_dim
        k_low += first_key // key_group * head_dim
        k_tail += kv_head * key_group * head_dim
    dims = tl.arange(0, BLOCK_D)
    begin = page * page_size
    end = tl.minimum(begin + page_size, cache_len)
    largest = tl.zeros((), tl.float32)
    for first_row in range(0, q_len * group, BLOCK_M):
        rows = first_row + tl.arange(0, BLOCK_M)
        index, head = rows // group, kv_head * group + rows % group
        asking = tl.load(active + kv_head * q_len + index, mask=index < q_len, other=0) != 0
        at_q = q + (head * q_len + index)[:, None] * head_dim + dims[None, :]
        query = tl.load(at_q, mask=asking[:, None] & (dims < head_dim)[None, :], other=0.0)
        lse = tl.load(row_lse + head * q_len + index, mask=asking, other=0.0)
        lse = tl.where(lse == float("-inf"), 0.0, lse)  # over nothing: no key will be seen either
        share = tl.zeros((BLOCK_M,), tl.float32)
        for first_position in range(begin, end, BLOCK_N):
            positions = first_position + tl.arange(0, BLOCK_N)
            seen = (positions < end) & ((positions < start) | (positions >= start + q_len))
            k = load_keys(
                k_cache, k_scale, k_low, k_tail, positions, dims, seen, head_dim, cache_len, key_group, query.dtype,
                BITS,
            )  # fmt: skip
            scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scale_log2
            scores = tl.where(seen[None, :] & asking[:, None], scores, float("-inf"))
            share += tl.sum(tl.exp2(scores - lse[:, None]), 1)
        largest = tl.maximum(largest, tl.max(share))
    tl.store(at_mass, largest)
