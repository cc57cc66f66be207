"""PatternAttention in plain NumPy: attention of a sequence to itself over kept pairs of blocks. The definition.

SparseD (arXiv 2509.24014): which blocks of keys a block of queries needs hardly changes from one denoising step to the
next, so it is measured once, in a dense step, for every query head, and kept. A block is `page_size` consecutive
positions; the last one may be shorter.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlm_edge.kernels.select_pages.reference import DENSE, DENSE_KEEP, REUSE_PAGES, Policy, largest

Array = NDArray[np.floating]
Bits = NDArray[np.uint8]


class PatternResult(NamedTuple):
    """out [1, q_len, n_heads * head_dim], in the dtype of q; the new pattern; and stats float32 [4]: rows that attended
    (summed over kv heads), pairs of blocks that were read, pairs that there are (both over query heads), and 0."""

    out: Array
    pattern: Bits
    stats: NDArray[np.float32]


def pattern_attention(
    q: Array, k: Array, v: Array, policy: Policy, pattern: Bits, *, scale: float = 0.0
) -> PatternResult:
    """Attention of every position to all others, in both directions.

    q        [1, n_heads, q_len, head_dim]      after norm and RoPE; n_heads is a multiple of n_kv_heads
    k, v     [1, n_kv_heads, q_len, head_dim]
    pattern  [n_heads, n_slots, n_slots]        1: the block of queries (second axis) reads the block of keys (third)
    scale    0 means 1 / sqrt(head_dim), also for the choice; the published code chooses with 1 / sqrt(n_heads)

    Only the first n_blocks = ceil(q_len / page_size) slots of both axes have a meaning. Of the policy count:

    mode       DENSE        everything is read, the pattern stays
               DENSE_KEEP   everything is read, and the pattern becomes what `chosen_blocks` says; 0 beyond n_blocks
               REUSE_PAGES  what the pattern keeps is read; a row that keeps nothing gets zeros
    sink       blocks of the prompt: those that end before generation begins
    n_pages    blocks of the prompt that each block of queries keeps
    n_active   all other blocks that it keeps, of the generated ones
    page_size  positions of a block
    """
    n_heads, q_len, head_dim = q.shape[1:]
    n_kv_heads, size = k.shape[1], policy.page_size
    n_blocks = -(-q_len // size)
    assert policy.mode in (DENSE, DENSE_KEEP, REUSE_PAGES) and n_blocks <= pattern.shape[1]
    k64, v64 = (x[0].astype(np.float64).repeat(n_heads // n_kv_heads, axis=0) for x in (k, v))
    scores = q[0].astype(np.float64) @ k64.swapaxes(1, 2) * (scale if scale else 1.0 / np.sqrt(head_dim))

    kept = pattern[:, :n_blocks, :n_blocks] != 0
    if policy.mode != REUSE_PAGES:
        kept = np.ones_like(kept)
    is_read = kept.repeat(size, axis=1).repeat(size, axis=2)[:, :q_len, :q_len]
    scores = np.where(is_read, scores, -np.inf)
    row_max = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(row_max), row_max, 0.0))
    row_sum = weights.sum(-1, keepdims=True)
    weights /= np.where(row_sum > 0, row_sum, 1.0)
    output: Array = (weights @ v64).swapaxes(0, 1).reshape(1, q_len, n_heads * head_dim).astype(q.dtype)

    pattern = pattern.copy()
    if policy.mode == DENSE_KEEP:
        pattern[:] = 0
        pattern[:, :n_blocks, :n_blocks] = chosen_blocks(weights, policy)
    stats = np.array([n_kv_heads * q_len, kept.sum(), kept.size, 0], np.float32)
    return PatternResult(output, pattern, stats)


def chosen_blocks(weights: NDArray[np.float64], policy: Policy) -> NDArray[np.bool_]:
    """[n_heads, n_blocks, n_blocks] from softmax weights [n_heads, q_len, q_len]: for every block of queries the blocks
    of keys of largest mean weight, n_pages among the prompt's and n_active among the others (section 3.3, "isolated
    selection"); all of them where there are not more. Equal means: the lower index first."""
    edges = np.arange(0, weights.shape[1], policy.page_size)
    sums = np.add.reduceat(np.add.reduceat(weights, edges, axis=1), edges, axis=2)
    lengths = np.diff(np.append(edges, weights.shape[1]))
    means = sums / (lengths[:, None] * lengths)
    is_prompt = np.arange(len(edges)) < policy.sink
    kept = largest(np.where(is_prompt, means, -np.inf), policy.n_pages) & is_prompt
    kept |= largest(np.where(is_prompt, -np.inf, means), policy.n_active) & ~is_prompt
    return kept
