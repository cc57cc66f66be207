# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Flags to lists, in order: of active rows and selected pages for every kv head, of kept blocks for every block."""

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]


@triton.jit
def compact(flags, indices, places, count, n, BLOCK: tl.constexpr):
    """indices[k] is the k-th set flag, places[i] how many set flags come before i, count[0] how many there are.

    `places` may be None.
    """
    offsets = tl.arange(0, BLOCK)
    before = tl.zeros((), tl.int32)
    for begin in range(0, n, BLOCK):
        at = begin + offsets
        is_set = (tl.load(flags + at, mask=at < n, other=0) != 0).to(tl.int32)
        place = before + tl.cumsum(is_set, 0) - is_set
        tl.store(indices + place, at, mask=is_set != 0)
        if places is not None:
            tl.store(places + at, place, mask=at < n)
        before += tl.sum(is_set)
    tl.store(count, before)


@triton.jit
def compact_rows_and_pages(
    active,  # uint8 [n_kv_heads, q_len]
    pages,  # uint8 [n_kv_heads, n_slots]
    row_list,  # int32 [n_kv_heads, q_len], like row_place
    row_place,
    page_list,  # int32 [n_kv_heads, n_slots]
    counts,  # int32 [2, n_kv_heads]: active rows, selected pages
    q_len,
    n_slots,
    BLOCK: tl.constexpr,
):
    """Grid (n_kv_heads, 2)."""
    head, n_kv_heads = tl.program_id(0), tl.num_programs(0)
    if tl.program_id(1) == 0:
        at = head * q_len
        compact(active + at, row_list + at, row_place + at, counts + head, q_len, BLOCK)
    else:
        at = head * n_slots
        compact(pages + at, page_list + at, None, counts + n_kv_heads + head, n_slots, BLOCK)


@triton.jit
def compact_blocks(
    pattern,  # uint8 [n_heads, n_slots, n_slots]
    block_list,  # int32 [n_heads, n_blocks, n_blocks]: of every block of queries, the blocks of keys that it reads
    counts,  # int32 [n_heads, n_blocks]
    n_blocks,
    n_slots,
    BLOCK: tl.constexpr,
):
    """Grid (n_heads, n_blocks)."""
    head, block = tl.program_id(0), tl.program_id(1)
    at = head * n_blocks + block
    flags = pattern + (head * n_slots + block) * n_slots
    compact(flags, block_list + at * n_blocks, None, counts + at, n_blocks, BLOCK)
