"""kv-fp32, kv-fp16, kv-int8, kv-int4, kv-int4x2: keys after norm and RoPE, and values.

append takes k and v [n_kv_heads, W, head_dim], exact. Quantized keys have a scale per channel and group of tokens,
with an exact tail, values one per token and group of channels (KIVI, arXiv 2402.02750).

k_cache, v_cache  [1, n_kv_heads, capacity, head_dim] floats, or uint8 codes, of 4 bits in head_dim / 2 bytes
k_scale, k_low    float16 [1, n_kv_heads, capacity / group, head_dim]
k_tail            float32 [1, n_kv_heads, group, head_dim]
v_scale, v_low    float16 [1, n_kv_heads, capacity, head_dim / channel group]

kv-int4x2 has the codes of kv-int8 in two planes of nibbles (QuantSpec, arXiv 2502.10424), of head_dim / 2 bytes each: the
upper ones in k_cache and v_cache, the lower ones in k_lower and v_lower. Each run says how many planes it reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlm_edge.runtime.layouts.grouping import channel_group
from dlm_edge.runtime.layouts.layout import CacheShape, Layout
from dlm_edge.runtime.layouts.parts import ChannelGroups, FloatRows, Part, TokenGroups


def float_kv(name: str, shape: CacheShape, capacity: int, dtype: type[np.floating[Any]]) -> Layout:
    """Written by the graph, which scatters the window's keys and values: `extend` says how far."""
    lead = (1, shape.n_kv_heads)

    def layer() -> dict[str, Part]:
        return {kind: FloatRows(lead, capacity, shape.head_dim, dtype) for kind in "kv"}

    return Layout(name, capacity, [layer() for _ in range(shape.n_layers)])


def quantized_kv(name: str, shape: CacheShape, capacity: int, bits: int, group: int, *, planes: bool = False) -> Layout:
    lead, width = (1, shape.n_kv_heads), shape.head_dim
    by_channel = channel_group(group, width, 4 if planes else bits)

    def layer() -> dict[str, Part]:
        return {
            "k": ChannelGroups(lead, capacity, width, bits=bits, group=group, planes=planes),
            "v": TokenGroups(lead, capacity, width, bits=bits, group=by_channel, planes=planes),
        }

    return Layout(name, capacity, [layer() for _ in range(shape.n_layers)])
