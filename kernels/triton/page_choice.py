# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Upper bounds of every query against every page, and the pages that each kv head selects from them."""

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from dlm_edge.kernels.triton.largest import largest, ordered_bits


@triton.jit
def page_scores(
    q,  # [n_heads, q_len, head_dim]
    low,  # int8 [n_kv_heads, n_slots, head_dim], like high
    high,
    page_scale,  # float32 [n_kv_heads, n_slots]
    active,  # uint8 [n_kv_heads, q_len]
    scores,  # float32 [n_kv_heads, q_len * group, n_slots]: rows of active queries and valid slots are written
    q_len,
    group,
    head_dim,
    n_slots,
    n_valid,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid (n_kv_heads, ceil(q_len * group / BLOCK_M), ceil(n_valid / BLOCK_N)). Row i * group + g is query i of head g.

    Queries count as float16, which is exact for a float16 model; |bound| <= 127 is exact in it too, so the products lose
    nothing before they are added in float32.
    """
    kv_head = tl.program_id(0)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    slots = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    index, head = rows // group, kv_head * group + rows % group
    asking = tl.load(active + kv_head * q_len + index, mask=index < q_len, other=0) != 0
    if tl.max(asking.to(tl.int32)) == 0:
        return
    at_q = q + (head * q_len + index)[:, None] * head_dim + dims[None, :]
    query = tl.load(at_q, mask=asking[:, None] & (dims < head_dim)[None, :], other=0.0).to(tl.float16)
    held = slots < n_valid
    at_bound = (kv_head * n_slots + slots)[:, None].to(tl.int64) * head_dim + dims[None, :]
    inside = held[:, None] & (dims < head_dim)[None, :]
    lower = tl.load(low + at_bound, mask=inside, other=0).to(query.dtype)
    upper = tl.load(high + at_bound, mask=inside, other=0).to(query.dtype)
    nothing = tl.zeros_like(query)
    bounds = tl.dot(tl.maximum(query, nothing), tl.trans(upper), input_precision="ieee")
    bounds = tl.dot(tl.minimum(query, nothing), tl.trans(lower), bounds, input_precision="ieee")
    bounds = bounds * tl.load(page_scale + kv_head * n_slots + slots, mask=held, other=0.0)[None, :]
    at = (kv_head * q_len * group + rows)[:, None].to(tl.int64) * n_slots + slots[None, :]
    tl.store(scores + at, bounds, mask=asking[:, None] & held[None, :])


@triton.jit
def choose_pages(
    scores,  # float32 [n_kv_heads, n_rows, n_slots], n_rows = grid's second number
    active,  # uint8 [n_kv_heads, q_len]
    pages,  # uint8 [n_kv_heads, n_slots], set to 1 where selected, the rest is left alone
    q_len,
    group,
    n_slots,
    n_valid,
    n_pages,
    edge,
    sink,
    recent,
    one_list,
    BLOCK: tl.constexpr,
):
    """Grid (n_kv_heads, q_len * group), or (n_kv_heads, 1) for scores that all rows share. n_valid is at most BLOCK.

    Several programs may store the same 1. `edge` is the first slot that lies in or behind the window.
    """
    kv_head, row = tl.program_id(0), tl.program_id(1)
    asked = tl.load(active + kv_head * q_len + row // group).to(tl.int32)
    if tl.num_programs(1) == 1:  # any row asks for all
        rows = tl.arange(0, BLOCK)
        for begin in range(0, q_len, BLOCK):
            flags = tl.load(active + kv_head * q_len + begin + rows, mask=begin + rows < q_len, other=0)
            asked = tl.maximum(asked, tl.max(flags.to(tl.int32)))
    if asked == 0:
        return
    slots = tl.arange(0, BLOCK)
    held = slots < n_valid
    forced = held & ((slots < sink) | ((slots < edge) & (slots >= edge - recent)))
    at_scores = scores + (kv_head * tl.num_programs(1) + row).to(tl.int64) * n_slots + slots
    values = tl.load(at_scores, mask=held, other=float("-inf"))
    keys = ordered_bits(tl.where(forced, float("inf"), values))

    taken = largest(keys, held, n_pages)
    first = tl.where(one_list != 0, 0, kv_head)
    last = tl.where(one_list != 0, tl.num_programs(0), kv_head + 1)
    for head in range(first, last):
        tl.store(pages + head * n_slots + slots, 1, mask=taken | forced)
