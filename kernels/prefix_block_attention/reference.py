"""PrefixBlockAttention in plain NumPy: slow, obvious, and the definition of the operator."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def prefix_block_attention(
    q: Array,
    k: Array,
    v: Array,
    k_cache: Array,
    v_cache: Array,
    start: int,
    cache_len: int,
    attn_block: int,
    *,
    scale: float = 0.0,
) -> Array:
    """Attend from a window of queries to a cache and to the window itself, block-causal.

    q                 [copies, n_heads, q_len, head_dim]      n_heads is a multiple of n_kv_heads
    k, v              [copies, n_kv_heads, q_len, head_dim]   the window, at positions start .. start + q_len - 1
    k_cache, v_cache  [1, n_kv_heads, capacity, head_dim]
    scale             0 means 1 / sqrt(head_dim)
    returns           [copies, q_len, n_heads * head_dim], in the dtype of q

    Copies are fillings of the same window; each sees the cache and itself. The native operator of the CPU takes any
    number from 1 up, the function body and the operator of the CUDA provider take 1.
    Of the cache, positions [0, cache_len) are seen, except those inside the window: the window replaces them.
    What lies there, or from cache_len on, has no influence, not even as NaN. The query at position i sees the
    key at position j when j < (i // attn_block + 1) * attn_block. It always sees itself, so no row is empty.
    """
    n_heads, q_len, head_dim = q.shape[1:]
    window = np.arange(start, start + q_len)
    kept = np.arange(cache_len)
    kept = kept[(kept < start) | (kept >= start + q_len)]

    n_rep, copies = n_heads // k.shape[1], len(q)
    q64 = q.astype(np.float64)
    k64, v64 = (
        np.concatenate([cache[:, :, kept].repeat(copies, axis=0), new], axis=2).astype(np.float64).repeat(n_rep, axis=1)
        for cache, new in ((k_cache, k), (v_cache, v))
    )

    # j < (i // L + 1) * L  <=>  j // L <= i // L, which cannot overflow
    visible = np.concatenate([kept, window]) // attn_block <= window[:, None] // attn_block
    scores = q64 @ k64.swapaxes(2, 3) * (scale if scale else 1.0 / np.sqrt(head_dim))
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    output: Array = (weights @ v64).swapaxes(1, 2).reshape(copies, q_len, n_heads * head_dim)
    return output.astype(q.dtype)


class SparseResult(NamedTuple):
    """out [copies, q_len, n_heads * head_dim], and the new state: prefix results and masses, see below."""

    out: Array
    prefix_out: Array
    prefix_lse: Array
    masses: Array


def sparse_prefix_block_attention(
    q: Array,
    k: Array,
    v: Array,
    k_cache: Array,
    v_cache: Array,
    start: int,
    cache_len: int,
    attn_block: int,
    active: NDArray[np.uint8],
    pages: NDArray[np.uint8],
    measure: bool,
    prefix_out: Array,
    prefix_lse: Array,
    masses: Array,
    *,
    scale: float = 0.0,
) -> SparseResult:
    """The overload "sparse": active rows attend to the keys of the selected pages, other rows reuse what is stored.

    active      [n_kv_heads, q_len]                what SelectPages chose; 0: the row's stored result is used
    pages       [n_kv_heads, n_slots]              page p is cache [p * page_size, (p + 1) * page_size),
                                                   page_size = ceil(capacity / n_slots)
    prefix_out  [1, n_heads, n_rows, head_dim]     float32: attention over the prefix alone, normalised over it
    prefix_lse  [1, n_heads, n_rows]               float32: its log-sum-exp, -inf over nothing
    masses      [1, n_kv_heads, n_slots]           float32: if `measure`, becomes each page's share of the prefix
                                                   attention (softmax over the prefix alone), the largest over active rows
    The rest as in prefix_block_attention. Of several copies all rows are active, and the new state is that of the first
    one: rows, pages and state are those of one window. Every key of the prefix is visible to every row: cache_len <= start, or
    attn_block covers the window. Rows from n_rows on are active and are not stored. Prefix and window are merged by
    their log-sum-exp (FlashBlock, arXiv 2602.05305): m = max(L_p, L_w), o = (e^(L_p-m) o_p + e^(L_w-m) o_w) / sum.
    """
    if len(q) > 1:
        assert active.all(), "rows of several copies must be active"
        results = [
            sparse_prefix_block_attention(
                one_q, one_k, one_v, k_cache, v_cache, start, cache_len, attn_block, active, pages, measure,
                prefix_out, prefix_lse, masses, scale=scale,
            )
            for one_q, one_k, one_v in zip(q[:, None], k[:, None], v[:, None], strict=True)
        ]  # fmt: skip
        return results[0]._replace(out=np.concatenate([result.out for result in results]))
    n_heads, q_len, head_dim = q.shape[1:]
    n_kv_heads, capacity = k_cache.shape[1:3]
    n_rep, n_rows, n_slots = n_heads // n_kv_heads, prefix_lse.shape[2], pages.shape[1]
    stored = min(n_rows, q_len)
    scale = scale if scale else 1.0 / np.sqrt(head_dim)
    positions = np.arange(cache_len)
    page_of = positions // max(-(-capacity // n_slots), 1)
    outside = (positions < start) | (positions >= start + q_len)
    window_block = (start + np.arange(q_len)) // attn_block

    out = np.empty((q_len, n_heads, head_dim))
    new_out, new_lse, new_masses = prefix_out.copy(), prefix_lse.copy(), masses.copy()
    if measure:
        new_masses[:] = 0
    for head in range(n_heads):
        shared = head // n_rep
        chosen = positions[outside & (pages[shared][page_of] != 0)]
        fresh = active[shared] != 0
        assert fresh[stored:].all(), "rows without state must be active"
        q64 = q[0, head].astype(np.float64) * scale
        o_p = np.zeros((q_len, head_dim))
        lse_p = np.full(q_len, -np.inf)
        o_p[:stored], lse_p[:stored] = prefix_out[0, head, :stored], prefix_lse[0, head, :stored]
        scores = q64[fresh] @ k_cache[0, shared, chosen].astype(np.float64).T
        o_p[fresh], lse_p[fresh] = attend(scores, v_cache[0, shared, chosen])
        if measure and chosen.size and fresh.any():
            shares = np.exp(scores - lse_p[fresh][:, None])
            for page in np.unique(page_of[chosen]):
                largest = shares[:, page_of[chosen] == page].sum(1).max()
                new_masses[0, shared, page] = max(new_masses[0, shared, page], largest)
        scores = np.where(window_block <= window_block[:, None], q64 @ k[0, shared].astype(np.float64).T, -np.inf)
        o_w, lse_w = attend(scores, v[0, shared])
        share = 1.0 / (1.0 + np.exp(lse_w - lse_p))[:, None]
        out[:, head] = share * o_p + (1.0 - share) * o_w
        new_out[0, head, :stored], new_lse[0, head, :stored] = o_p[:stored], lse_p[:stored]
    return SparseResult(out.reshape(1, q_len, -1).astype(q.dtype), new_out, new_lse, new_masses)


def attend(scores: Array, values: Array) -> tuple[Array, Array]:
    """Softmax-weighted values [rows, head_dim] and log-sum-exp [rows] of scores [rows, keys]; zeros and -inf for no keys."""
    if not scores.shape[1]:
        return np.zeros((len(scores), values.shape[-1])), np.full(len(scores), -np.inf)
    largest = scores.max(-1, keepdims=True)
    weights = np.exp(scores - largest)
    total = weights.sum(-1, keepdims=True)
    return weights / total @ values.astype(np.float64), np.log(total[:, 0]) + largest[:, 0]
