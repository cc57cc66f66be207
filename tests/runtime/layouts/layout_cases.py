"""Shapes, random rows and graph-side readings of every cache layout, for the tests of this folder."""

from __future__ import annotations

import numpy as np

from dlm_edge.kernels.dequantize_rows.latents import latent_maps
from dlm_edge.runtime.layouts import LAYOUTS, CacheShape, Layout, ToLatent, layout_kind, open_layout

SHAPE = CacheShape(n_layers=5, n_kv_heads=2, head_dim=40, hidden_size=96)
CAPACITY, GROUP = 192, 32
EVERY_LAYOUT = tuple(name for name in LAYOUTS if name != "none")  # which has nothing to test here


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def some_maps(shape: CacheShape = SHAPE) -> list[ToLatent]:
    def one(seed: int) -> np.ndarray:
        return latent_maps(normal(shape.kv_width, shape.hidden_size, seed=seed)).to_latent

    return [ToLatent(one(i), one(i + 100)) for i in range(shape.n_layers)]


MAPS = some_maps()


def opened(name: str, capacity: int = CAPACITY) -> Layout:
    return open_layout(name, SHAPE, capacity, group=GROUP, to_latent=MAPS)


def window_rows(name: str, length: int, seed: int = 0) -> list[tuple[np.ndarray, ...]]:
    """What `append` wants of each layer, for `length` positions. X changes little from layer to layer."""
    form, layers = layout_kind(name).form, range(SHAPE.n_layers)
    if form in ("float", "kv"):
        kv = (SHAPE.n_kv_heads, length, SHAPE.head_dim)
        return [(normal(*kv, seed=seed + i), normal(*kv, seed=seed + i + 50)) for i in layers]
    if form == "latent":
        size = (length, SHAPE.kv_width)
        return [(normal(*size, seed=seed + i), normal(*size, seed=seed + i + 50)) for i in layers]
    x = normal(length, SHAPE.hidden_size, seed=seed)
    changes = [0.3 * normal(length, SHAPE.hidden_size, seed=seed + 1 + i) for i in layers]
    return [(x + sum(changes[: i + 1]),) for i in layers]


def append(layout: Layout, rows: list[tuple[np.ndarray, ...]], start: int, end: int) -> None:
    """Positions [start, end) of `rows`, all layers in order; nothing where there are none."""
    for layer, values in enumerate(rows if end > start else ()):
        layout.append(layer, start, *(value[..., start:end, :] for value in values))
