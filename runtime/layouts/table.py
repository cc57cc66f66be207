"""Every cache layout by name, and opening one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dlm_edge.errors import UsageProblem
from dlm_edge.nearest import nearest
from dlm_edge.runtime.layouts.grouping import check_group
from dlm_edge.runtime.layouts.kv import float_kv, quantized_kv
from dlm_edge.runtime.layouts.layout import CacheShape, Layout
from dlm_edge.runtime.layouts.x_deltas import CrossLayerDeltas
from dlm_edge.runtime.layouts.x_latents import ToLatent, x_latents
from dlm_edge.runtime.layouts.x_rows import x_rows

Form = Literal["none", "float", "kv", "x", "latent", "deltas"]


@dataclass(frozen=True, slots=True)
class LayoutKind:
    form: Form
    bits: int  # of a stored value; in "deltas" of the layers above the base
    has_planes: bool = False  # codes in two planes: each run says how many of them it reads


# Two float16 numbers a group: with 128 a quarter of a bit per value, as in XQuant (arXiv 2508.10395). The divergence of
# the logits over a kv-int4 prefix of the model `reference` doubles from 64 to 128, and is the same with 32 and 64.
DEFAULT_GROUPS: dict[Form, int] = {"none": 128, "float": 128, "kv": 64, "x": 128, "latent": 128, "deltas": 128}

LAYOUTS: dict[str, LayoutKind] = {
    "none": LayoutKind("none", 0),  # every step computes the whole sequence
    "kv-fp32": LayoutKind("float", 32),
    "kv-fp16": LayoutKind("float", 16),
    "kv-int8": LayoutKind("kv", 8),
    "kv-int4x2": LayoutKind("kv", 8, has_planes=True),
    "kv-int4": LayoutKind("kv", 4),
    "x-int8": LayoutKind("x", 8),
    "x-int4": LayoutKind("x", 4),
    "x-int3": LayoutKind("x", 3),
    "x-int2": LayoutKind("x", 2),
    "x-latent-int8": LayoutKind("latent", 8),
    "x-latent-int4": LayoutKind("latent", 4),
    "x-latent-int3": LayoutKind("latent", 3),
    "x-latent-int2": LayoutKind("latent", 2),
    "x-cl4": LayoutKind("deltas", 4),
    "x-cl3": LayoutKind("deltas", 3),
    "x-cl2": LayoutKind("deltas", 2),
}


def layout_kind(name: str) -> LayoutKind:
    """E-PARAM for a name that is not in the table."""
    if name not in LAYOUTS:
        raise UsageProblem("E-PARAM", f"{name!r} is no cache layout", nearest(name, LAYOUTS))
    return LAYOUTS[name]


def default_group(name: str) -> int:
    return DEFAULT_GROUPS[layout_kind(name).form]


def fitting_layout(name: str, shape: CacheShape) -> str:
    """What to store for `name` in a model of this shape: latents instead of X where they are not wider.

    Latents of keys and values take 2 * kv_width values, X takes hidden_size; with one kv head for each query head, X wins.
    """
    kind = layout_kind(name)
    if kind.form == "x" and 2 * shape.kv_width <= shape.hidden_size:
        return f"x-latent-int{kind.bits}"
    return name


def open_layout(
    name: str,
    shape: CacheShape,
    capacity: int,
    *,
    group: int | None = None,
    to_latent: Sequence[ToLatent] | None = None,
) -> Layout:
    """An empty layout for `capacity` positions, a multiple of `group`. For the latent layouts, `to_latent` of
    every layer makes latents of what is appended; without it, latents are appended.

    Raises UsageProblem E-PARAM for an unknown name, a group that is not offered or does not fit the model's widths.
    """
    kind = layout_kind(name)
    group = default_group(name) if group is None else group
    check_group(group)
    if kind.form == "none":
        return Layout(name, capacity, [{}] * shape.n_layers)
    if kind.form == "float":
        return float_kv(name, shape, capacity, np.float32 if kind.bits == 32 else np.float16)
    if kind.form == "kv":
        return quantized_kv(name, shape, capacity, kind.bits, group, planes=kind.has_planes)
    if kind.form == "x":
        return x_rows(name, shape, capacity, kind.bits, group)
    if kind.form == "latent":
        return x_latents(name, shape, capacity, kind.bits, group, to_latent)
    return CrossLayerDeltas(name, shape, capacity, kind.bits, group)


def bytes_per_token(name: str, shape: CacheShape, *, group: int | None = None) -> float:
    """Of all layers together, without the tails and page bounds."""
    group = default_group(name) if group is None else group
    return open_layout(name, shape, group, group=group).bytes_per_token
