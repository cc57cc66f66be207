"""SelectPages and PrefixBlockAttention on PyTorch tensors: which kernels run, in which order, on which grids.

kernels/csrc/cuda_select_pages.cpp and cuda_attention.cpp make the same launches from compiled files. Tensors lie on
one CUDA device, or on the CPU when Triton interprets. States are rewritten in place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlm_edge.kernels.select_pages.reference import REUSE_PAGES, SELECT, SELECT_ROWS, Policy
from dlm_edge.kernels.triton import tiles
from dlm_edge.kernels.triton.attend_pages import attend_pages
from dlm_edge.kernels.triton.attend_window import attend_window
from dlm_edge.kernels.triton.compaction import compact_rows_and_pages
from dlm_edge.kernels.triton.measure_pages import measure_pages
from dlm_edge.kernels.triton.page_choice import choose_pages, page_scores
from dlm_edge.kernels.triton.row_choice import choose_rows, row_movement
from dlm_edge.kernels.triton.selection_end import keep_queries

LARGEST_POSITION = 1 << 30


@dataclass(frozen=True, slots=True)
class Cache:
    """k, v [1, n_kv_heads, capacity, head_dim]: values (bits 16) or codes (8, 4) with what cache_loads.py needs."""

    k: Tensor
    v: Tensor
    bits: int = 16
    k_scale: Tensor | None = None
    k_low: Tensor | None = None
    k_tail: Tensor | None = None
    v_scale: Tensor | None = None
    v_low: Tensor | None = None

    @property
    def key_group(self) -> int:
        return self.k.shape[2] // self.k_scale.shape[2] if self.k_scale is not None else 1

    def value_group(self, head_dim: int) -> int:
        return head_dim // self.v_scale.shape[3] if self.v_scale is not None else 1


@dataclass(frozen=True, slots=True)
class PrefixState:
    """prefix_out [1, n_heads, n_rows, head_dim], prefix_lse [1, n_heads, n_rows], masses [1, n_kv_heads, n_slots]:
    float32, rewritten in place."""

    prefix_out: Tensor
    prefix_lse: Tensor
    masses: Tensor


class Selected(NamedTuple):
    """active uint8 [n_kv_heads, q_len], pages uint8 [n_kv_heads, n_slots], stats float32 [4]."""

    active: Tensor
    pages: Tensor
    stats: Tensor


def select_pages(
    q: Tensor,
    low: Tensor,
    high: Tensor,
    page_scale: Tensor,
    q_last: Tensor,
    q_stored: Tensor,
    masses: Tensor,
    start: int,
    cache_len: int,
    policy: Policy,
    drift: float = math.inf,
) -> Selected:
    """As kernels/select_pages/reference.py, with q_last and q_stored rewritten in place."""
    n_heads, q_len, head_dim = q.shape[1:]
    n_kv_heads, n_slots, n_state_rows = low.shape[1], low.shape[2], q_last.shape[2]
    n_rows, group = min(q_len, n_state_rows), n_heads // n_kv_heads
    n_valid, block_d = -(-cache_len // policy.page_size), tiles.head_block(head_dim)
    active = torch.empty((n_kv_heads, q_len), dtype=torch.uint8, device=q.device)
    pages = torch.empty((n_kv_heads, n_slots), dtype=torch.uint8, device=q.device)
    stats = torch.empty(4, dtype=torch.float32, device=q.device)
    movement = _scratch(q, 3, n_kv_heads, max(n_rows, 1))
    if policy.mode in (SELECT, SELECT_ROWS) and n_rows:
        row_movement[n_kv_heads, n_rows](
            q, q_last, q_stored, movement, q_len, n_state_rows, n_rows, group, head_dim, BLOCK_D=block_d, num_warps=1
        )
    choose_rows[(n_kv_heads,)](
        movement, active, pages, q_len, n_rows, n_slots, n_valid, policy.mode, policy.n_active, policy.per_head,
        policy.since_stored, drift, BLOCK_R=tiles.state_block(n_rows), BLOCK=tiles.SCAN_BLOCK, num_warps=1,
    )  # fmt: skip
    if policy.mode in (SELECT, REUSE_PAGES, SELECT_ROWS) and n_valid:
        scores, n_score_rows = masses, 1
        if policy.mode == SELECT:
            n_score_rows = q_len * group
            scores = _scratch(q, n_kv_heads, n_score_rows, n_slots)
            block_m, block_n = tiles.row_block(n_score_rows), tiles.key_block(block_d)
            grid = (n_kv_heads, -(-n_score_rows // block_m), -(-n_valid // block_n))
            page_scores[grid](
                q, low, high, page_scale, active, scores, q_len, group, head_dim, n_slots, n_valid,
                BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=block_d, num_warps=tiles.window_warps(block_d, block_m),
            )  # fmt: skip
        block = tiles.slot_block(n_valid)
        edge = -(-start // policy.page_size)
        choose_pages[n_kv_heads, n_score_rows](
            scores, active, pages, q_len, group, n_slots, n_valid, policy.n_pages, edge, policy.sink, policy.recent,
            policy.one_list, BLOCK=block, num_warps=tiles.slot_warps(block),
        )  # fmt: skip
    keep_queries[n_heads, n_rows + 1](
        q, active, pages, q_last, q_stored, stats, q_len, n_state_rows, n_rows, group, head_dim, n_kv_heads, n_slots,
        n_valid, int(policy.mode == SELECT), BLOCK_D=block_d, BLOCK=tiles.SCAN_BLOCK, num_warps=4,
    )  # fmt: skip
    return Selected(active, pages, stats)


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, cache: Cache, start: int, cache_len: int, attn_block: int, *, scale: float = 0.0
) -> Tensor:
    """The overload "dense", [1, q_len, n_heads * head_dim]."""
    return _attend(q, k, v, cache, start, cache_len, attn_block, None, None, False, None, scale)


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: Cache,
    start: int,
    cache_len: int,
    attn_block: int,
    active: Tensor,
    pages: Tensor,
    measure: bool,
    state: PrefixState,
    *,
    scale: float = 0.0,
) -> Tensor:
    """The overloads "sparse", "int8" and "int4", [1, q_len, n_heads * head_dim]."""
    return _attend(q, k, v, cache, start, cache_len, attn_block, active, pages, measure, state, scale)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: Cache,
    start: int,
    cache_len: int,
    attn_block: int,
    active: Tensor | None,
    pages: Tensor | None,
    measure: bool,
    state: PrefixState | None,
    scale: float,
) -> Tensor:
    n_heads, q_len, head_dim = q.shape[1:]
    n_kv_heads, capacity = cache.k.shape[1:3]
    group, block_d = n_heads // n_kv_heads, tiles.head_block(head_dim)
    n_slots = 1 if pages is None else pages.shape[1]
    page_size = max(-(-capacity // n_slots), 1)
    attn_block = min(attn_block, LARGEST_POSITION)  # all positions are below: one block, whichever it is
    scale_log2 = (scale or 1 / math.sqrt(head_dim)) * math.log2(math.e)
    lists: list[Any] = [None] * 3
    row_place = None
    if active is not None and pages is not None:
        lists, row_place = _lists(active, pages)

    n_rows = q_len * group
    block_m = tiles.row_block(n_rows)
    n_tiles = -(-n_rows // block_m)
    n_splits = tiles.split_count(n_kv_heads * n_tiles, cache_len, processor_count(q))
    partial_out = _scratch(q, max(n_splits, 1), n_kv_heads, n_rows, head_dim)
    partial_lse = _scratch(q, max(n_splits, 1), n_kv_heads, n_rows)
    quantized = (cache.k_scale, cache.k_low, cache.k_tail)
    groups = (cache.key_group, cache.value_group(head_dim))
    if n_splits:
        attend_pages[n_kv_heads, n_tiles, n_splits](
            q, cache.k, cache.v, *quantized, cache.v_scale, cache.v_low, *lists, partial_out, partial_lse,
            scale_log2, q_len, group, head_dim, capacity, n_slots, page_size, start, cache_len, attn_block, *groups,
            BITS=cache.bits, PAGED=state is not None, BLOCK_M=block_m, BLOCK_N=tiles.key_block(block_d, cache.bits),
            BLOCK_D=block_d, num_warps=tiles.warps(block_d, block_m, cache.bits),
            num_stages=tiles.stages(block_d, cache.bits),
        )  # fmt: skip
    out = torch.empty((1, q_len, n_heads * head_dim), dtype=q.dtype, device=q.device)
    row_lse = _scratch(q, n_heads, q_len)
    stored = (state.prefix_out, state.prefix_lse) if state else (None, None)
    block_m = tiles.row_block(q_len)
    attend_window[n_heads, -(-q_len // block_m)](
        q, k, v, active, row_place, partial_out, partial_lse, *stored, row_lse, out,
        scale_log2, q_len, group, head_dim, state.prefix_lse.shape[2] if state else 0, n_splits, start % attn_block,
        attn_block, KEEP=state is not None, BLOCK_M=block_m, BLOCK_N=tiles.key_block(block_d), BLOCK_D=block_d,
        num_warps=tiles.window_warps(block_d, block_m), num_stages=2,
    )  # fmt: skip
    if measure and state is not None:
        measure_pages[n_slots, n_kv_heads](
            q, cache.k, *quantized, active, pages, row_lse, state.masses, scale_log2, q_len, group, head_dim, capacity,
            n_slots, page_size, start, cache_len, cache.key_group,
            BITS=cache.bits, BLOCK_M=tiles.row_block(n_rows), BLOCK_N=tiles.MEASURED_KEYS, BLOCK_D=block_d, num_warps=4,
            num_stages=tiles.stages(block_d, cache.bits),
        )  # fmt: skip
    return out


def _lists(active: Tensor, pages: Tensor) -> tuple[list[Tensor], Tensor]:
    """[row_list, page_list, counts] and row_place of compaction.py."""
    n_kv_heads, q_len = active.shape
    n_slots = pages.shape[1]

    def integers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=active.device)

    rows, row_place = integers(n_kv_heads, q_len), integers(n_kv_heads, q_len)
    slots, counts = integers(n_kv_heads, n_slots), integers(2, n_kv_heads)
    compact_rows_and_pages[n_kv_heads, 2](
        active, pages, rows, row_place, slots, counts, q_len, n_slots, BLOCK=tiles.SCAN_BLOCK, num_warps=4
    )
    return [rows, slots, counts], row_place


def processor_count(tensor: Tensor) -> int:
    """Streaming multiprocessors of the tensor's device; 8 where Triton interprets, so that splits occur there too."""
    if tensor.device.type != "cuda":
        return 8
    return int(torch.cuda.get_device_properties(tensor.device).multi_processor_count)


def _scratch(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)
