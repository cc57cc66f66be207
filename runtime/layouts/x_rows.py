"""x-int8, x-int4, x-int3, x-int2: the input X of every attention layer (XQuant, arXiv 2508.10395), for models whose keys and
values are as wide as X.

append takes x [W, hidden_size]: what enters the projections, after the norm. One scale per token and group, no tail.

x_cache         uint8 [capacity, hidden_size * bits / 8], laid out as DequantizeRows says
x_scale, x_low  float16 [capacity, hidden_size / group]
"""

from __future__ import annotations

from dlm_edge.runtime.layouts.grouping import channel_group
from dlm_edge.runtime.layouts.layout import CacheShape, Layout
from dlm_edge.runtime.layouts.parts import TokenGroups


def x_rows(name: str, shape: CacheShape, capacity: int, bits: int, group: int) -> Layout:
    width = shape.hidden_size
    along = channel_group(group, width, bits)
    layers = [{"x": TokenGroups((), capacity, width, bits=bits, group=along)} for _ in range(shape.n_layers)]
    return Layout(name, capacity, layers)
