"""PrefixBlockAttention in plain NumPy: slow, obvious, and the definition of the operator."""

from __future__ import annotations

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

    q                 [1, n_heads, q_len, head_dim]      n_heads is a multiple of n_kv_heads
    k, v              [1, n_kv_heads, q_len, head_dim]   the window, at positions start .. start + q_len - 1
    k_cache, v_cache  [1, n_kv_heads, capacity, head_dim]
    scale             0 means 1 / sqrt(head_dim)
    returns           [1, q_len, n_heads * head_dim], in the dtype of q

    Of the cache, positions [0, cache_len) are seen, except those inside the window: the window replaces them.
    What lies there, or from cache_len on, has no influence, not even as NaN. The query at position i sees the
    key at position j when j < (i // attn_block + 1) * attn_block. It always sees itself, so no row is empty.
    """
    n_heads, q_len, head_dim = q.shape[1:]
    window = np.arange(start, start + q_len)
    kept = np.arange(cache_len)
    kept = kept[(kept < start) | (kept >= start + q_len)]

    n_rep = n_heads // k.shape[1]
    q64 = q[0].astype(np.float64)
    k64 = np.concatenate([k_cache[0][:, kept], k[0]], axis=1).astype(np.float64).repeat(n_rep, axis=0)
    v64 = np.concatenate([v_cache[0][:, kept], v[0]], axis=1).astype(np.float64).repeat(n_rep, axis=0)

    # j < (i // L + 1) * L  <=>  j // L <= i // L, which cannot overflow
    visible = np.concatenate([kept, window]) // attn_block <= window[:, None] // attn_block
    scores = q64 @ k64.swapaxes(1, 2) * (scale if scale else 1.0 / np.sqrt(head_dim))
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    output: Array = (weights @ v64).swapaxes(0, 1).reshape(1, q_len, n_heads * head_dim)
    return output.astype(q.dtype)
