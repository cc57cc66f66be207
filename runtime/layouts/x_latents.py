"""x-latent-int8 ... x-latent-int2: latents of X, as wide as keys and values (XQuant, arXiv 2508.10395, for grouped heads).

append takes k and v [W, n_kv_heads * head_dim] as the projections give them, before bias, norm and RoPE; or, where no
`to_latent` is given, the latents themselves, for a graph that computes them. What is stored is k @ to_latent, with a scale per channel and group of tokens and an exact tail (the outliers sit in the first channels),
and v @ to_latent, with a scale per token and group of channels. The graph multiplies by from_latent.

k_cache, v_cache  uint8 [capacity, kv_width * bits / 8], laid out as DequantizeRows says
k_scale, k_low    float16 [capacity / group, kv_width]
k_tail            float32 [group, kv_width]
v_scale, v_low    float16 [capacity, kv_width / channel group]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dlm_edge.kernels.quantized_pages.reference import Floats
from dlm_edge.runtime.layouts.grouping import channel_group
from dlm_edge.runtime.layouts.layout import CacheShape, Layout
from dlm_edge.runtime.layouts.parts import ChannelGroups, Part, TokenGroups


class ToLatent(NamedTuple):
    """float32 [kv_width, kv_width] for keys and for values of one layer, from `kernels.dequantize_rows.latents`."""

    k: Floats
    v: Floats


def x_latents(
    name: str, shape: CacheShape, capacity: int, bits: int, group: int, to_latent: Sequence[ToLatent] | None
) -> Layout:
    """`to_latent`: one for each layer, or None when `append` is given latents."""
    width = shape.kv_width

    def layer() -> dict[str, Part]:
        return {
            "k": ChannelGroups((), capacity, width, bits=bits, group=group),
            "v": TokenGroups((), capacity, width, bits=bits, group=channel_group(group, width, bits)),
        }

    def transform(layer: int, values: Sequence[Floats]) -> Sequence[Floats]:
        if to_latent is None:
            return values
        # In float64: the smallest directions are amplified, and a row's bits should not depend on its neighbours.
        pairs = zip(values, to_latent[layer], strict=True)
        return [(rows.astype(np.float64) @ matrix).astype(np.float32) for rows, matrix in pairs]

    return Layout(name, capacity, [layer() for _ in range(shape.n_layers)], transform)
