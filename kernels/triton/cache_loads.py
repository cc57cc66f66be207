# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Keys and values of given positions, from plain or quantized pages, in the type of the queries.

BITS 16: the cache holds values of the queries' type. 8 and 4: unsigned codes, value = code * scale + low in float32,
rounded once to the queries' type; of two 4-bit channels the even one is in the low half of the byte. Scales of keys
belong to (group of key_group positions, channel), scales of values to (position, group of value_group channels).
Keys of the last, incomplete group of positions are exact and lie in k_tail. Nothing is read where `seen` is false.
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]


@triton.jit
def load_codes(codes, positions, dims, head_dim, mask, BITS: tl.constexpr):
    """float32 [positions, dims]"""
    if BITS == 4:
        at = positions[:, None] * (head_dim // 2) + (dims // 2)[None, :]
        pairs = tl.load(codes + at, mask=mask, other=0).to(tl.int32)
        found = (pairs >> ((dims % 2) * 4)[None, :]) & 15
    else:
        found = tl.load(codes + positions[:, None] * head_dim + dims[None, :], mask=mask, other=0)
    return found.to(tl.float32)


@triton.jit
def load_keys(
    k_cache, k_scale, k_low, k_tail, positions, dims, seen, head_dim, cache_len, key_group, DTYPE: tl.constexpr,
    BITS: tl.constexpr,
):  # fmt: skip
    inside = seen[:, None] & (dims < head_dim)[None, :]
    if BITS == 16:
        return tl.load(k_cache + positions[:, None] * head_dim + dims[None, :], mask=inside, other=0.0)
    else:
        tail_begin = cache_len // key_group * key_group
        in_tail = inside & (positions >= tail_begin)[:, None]
        coded = inside & (positions < tail_begin)[:, None]
        at_scale = (positions // key_group)[:, None] * head_dim + dims[None, :]
        scale = tl.load(k_scale + at_scale, mask=coded, other=0.0).to(tl.float32)
        low = tl.load(k_low + at_scale, mask=coded, other=0.0).to(tl.float32)
        keys = load_codes(k_cache, positions, dims, head_dim, coded, BITS) * scale + low
        at_tail = (positions - tail_begin)[:, None] * head_dim + dims[None, :]
        return tl.where(in_tail, tl.load(k_tail + at_tail, mask=in_tail, other=0.0), keys).to(DTYPE)


@triton.jit
def load_values(
    v_cache, v_scale, v_low, positions, dims, seen, head_dim, value_group, DTYPE: tl.constexpr, BITS: tl.constexpr
):
    inside = seen[:, None] & (dims < head_dim)[None, :]
    if BITS == 16:
        return tl.load(v_cache + positions[:, None] * head_dim + dims[None, :], mask=inside, other=0.0)
    else:
        at_scale = positions[:, None] * (head_dim // value_group) + (dims // value_group)[None, :]
        scale = tl.load(v_scale + at_scale, mask=inside, other=0.0).to(tl.float32)
        low = tl.load(v_low + at_scale, mask=inside, other=0.0).to(tl.float32)
        return (load_codes(v_cache, positions, dims, head_dim, inside, BITS) * scale + low).to(DTYPE)
