"""SelectPages in plain NumPy: which rows of a window attend afresh, and to which pages of the prefix. The definition.

A page is `page_size` consecutive cache positions. Its bounds enclose every key in it, so that
sum_c max(q_c low_c, q_c high_c) is never less than q . k of any of them (Quest, arXiv 2406.10774, section 3.2). Rows
whose query moved least since the last step keep their stored prefix result (LoSA, arXiv 2604.12056).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bits = NDArray[np.uint8]

DENSE, SELECT, REUSE_ROWS, REUSE_PAGES, DENSE_KEEP, SELECT_ROWS = range(6)  # the modes


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's input `policy`, int64 [9], in this order; `drift` is an input of its own.

    mode          DENSE        every row is active, every page selected: the first step of a block, and exact passes
                  SELECT       the rows that moved most, and the union of the pages that they choose
                  REUSE_ROWS   no row is active
                  REUSE_PAGES  every row is active, on the pages that held most attention when it was last measured
                  SELECT_ROWS  the rows that moved most, on the pages of REUSE_PAGES
                  DENSE_KEEP   as DENSE, and PrefixBlockAttention measures (MAGE, arXiv 2602.14209)
    n_pages       pages that each query chooses (without bounds: each kv head), the forced ones included
    n_active      rows that attend afresh; at least the window's length makes SELECT Quest
    sink, recent  pages at the beginning, and right before the window, that are always selected
    per_head      1: active rows are chosen for each kv head, 0: for the layer
    since_stored  1: movement counts from the query of the stored result, 0: from the query of the last step
    one_list      1: all kv heads share the union of their pages (what rematerialisation of whole rows needs)
    page_size     cache positions of a page
    """

    mode: int = DENSE
    n_pages: int = 1
    n_active: int = 1
    sink: int = 1
    recent: int = 1
    per_head: int = 0
    since_stored: int = 0
    one_list: int = 0
    page_size: int = 16


EXACT_POLICY = Policy()


class Selection(NamedTuple):
    """active uint8 [n_kv_heads, q_len], pages uint8 [n_kv_heads, n_slots], the new state, and
    stats float32 [4]: active rows, selected pages, pages that hold keys (these three summed over kv heads), and 1 if
    page bounds were read, else 0."""

    active: Bits
    pages: Bits
    q_last: Floats
    q_stored: Floats
    stats: Floats


def select_pages(
    q: Floats,
    low: NDArray[np.int8],
    high: NDArray[np.int8],
    page_scale: Floats,
    q_last: Floats,
    q_stored: Floats,
    masses: Floats,
    start: int,
    cache_len: int,
    policy: Policy,
    drift: float = np.inf,
) -> Selection:
    """Rows and pages of one layer and step.

    q           [copies, n_heads, q_len, head_dim]   after norm and RoPE; of several copies of the window the first counts
    low, high   [1, n_kv_heads, n_slots, head_dim]   bounds of the keys of each page, times page_scale
    page_scale  [1, n_kv_heads, n_slots]
    q_last      [1, n_heads, n_rows, head_dim]       queries of the last step; n_rows may exceed q_len or not reach it
    q_stored    like q_last                          queries whose prefix results are stored
    masses      [1, n_kv_heads, n_slots]             largest attention mass of each page
    drift       an inactive row becomes active when |q - q_stored|^2 > drift |q_stored|^2; infinity: never

    Only slots below ceil(cache_len / policy.page_size) hold keys. Rows from n_rows on have no state: always active.
    Equal scores: the lower index first.
    """
    n_heads, q_len, _ = q.shape[1:]
    n_kv_heads, n_slots, n_rows = low.shape[1], low.shape[2], min(q_len, q_last.shape[2])
    n_valid = -(-cache_len // policy.page_size)
    valid = np.arange(n_slots) < n_valid
    active = np.ones((n_kv_heads, q_len), bool)
    pages = np.broadcast_to(valid, (n_kv_heads, n_slots)).copy()

    if policy.mode in (SELECT, SELECT_ROWS):
        active[:, :n_rows] = active_rows(q[0, :, :n_rows], q_last[0], q_stored[0], n_kv_heads, policy, drift)
    if policy.mode == SELECT:
        scores = page_bounds(q[0], low[0], high[0], page_scale[0])
        pages = chosen_pages(scores, active, valid, start, policy)
    elif policy.mode in (REUSE_PAGES, SELECT_ROWS):
        some: NDArray[np.bool_] = np.any(active, -1)[:, None]
        pages = chosen_pages(masses[0][:, None], some, valid, start, policy)
    elif policy.mode == REUSE_ROWS:
        active[:, :n_rows] = False
        pages &= active.any(-1, keepdims=True)

    fresh = active.repeat(n_heads // n_kv_heads, 0)[:, :n_rows]
    q_last, q_stored = q_last.copy(), q_stored.copy()
    q_stored[0, :, :n_rows][fresh] = q[0, :, :n_rows][fresh]
    q_last[0, :, :n_rows] = q[0, :, :n_rows]
    stats = np.array([active.sum(), pages.sum(), n_kv_heads * n_valid, policy.mode == SELECT], np.float32)
    return Selection(active.astype(np.uint8), pages.astype(np.uint8), q_last, q_stored, stats)


def active_rows(
    q: Floats, q_last: Floats, q_stored: Floats, n_kv_heads: int, policy: Policy, drift: float
) -> NDArray[np.bool_]:
    """[n_kv_heads, n_rows]: the rows that moved most, and those that drifted too far. q is [n_heads, n_rows, head_dim]."""
    n_rows = q.shape[1]

    def squared(x: Floats) -> Floats:
        by_head = np.square(x.astype(np.float32)).sum(-1).reshape(n_kv_heads, len(x) // n_kv_heads, n_rows)
        per_head: Floats = by_head.sum(1)
        return per_head if policy.per_head else np.broadcast_to(per_head.sum(0), per_head.shape)

    away = squared(q - q_stored[:, :n_rows])
    moved = away if policy.since_stored else squared(q - q_last[:, :n_rows])
    active = largest(moved, policy.n_active)
    if np.isfinite(drift):
        active |= away > np.float32(drift) * squared(q_stored[:, :n_rows])
    return active


def page_bounds(q: Floats, low: NDArray[np.int8], high: NDArray[np.int8], page_scale: Floats) -> Floats:
    """Upper bounds [n_heads, q_len, n_slots] of q . k over the keys of each page, unscaled by 1 / sqrt(head_dim)."""
    n_rep = q.shape[0] // low.shape[0]
    above: Floats = np.maximum(q, 0)
    below: Floats = np.minimum(q, 0)
    low32, high32 = (x.astype(np.float32).repeat(n_rep, 0).swapaxes(1, 2) for x in (low, high))
    bounds: Floats = (above @ high32 + below @ low32) * page_scale.repeat(n_rep, 0)[:, None]
    return bounds


def chosen_pages(
    scores: Floats, active: NDArray[np.bool_], valid: NDArray[np.bool_], start: int, policy: Policy
) -> NDArray[np.bool_]:
    """[n_kv_heads, n_slots]: forced pages, and the union of what the active queries of each kv head choose."""
    n_kv_heads, n_slots = active.shape[0], len(valid)
    slots, edge = np.arange(n_slots), -(-start // policy.page_size)
    forced = valid & ((slots < policy.sink) | ((slots < edge) & (slots >= edge - policy.recent)))
    ranked = np.where(forced, np.inf, np.where(valid, scores, -np.inf))
    picked = largest(ranked, policy.n_pages) & valid  # [n_heads, q_len, n_slots]
    by_head = picked.reshape(n_kv_heads, -1, active.shape[1], n_slots)
    pages = (by_head & active[:, None, :, None]).any((1, 2)) | (forced & active.any(-1, keepdims=True))
    return np.broadcast_to(pages.any(0), pages.shape).copy() if policy.one_list else pages


def largest(values: Floats, count: int) -> NDArray[np.bool_]:
    """True at the `count` largest along the last axis; of equal ones the lower index comes first."""
    order = np.argsort(-values, axis=-1, kind="stable")[..., :count]
    found = np.zeros(values.shape, bool)
    np.put_along_axis(found, order, True, -1)
    return found
