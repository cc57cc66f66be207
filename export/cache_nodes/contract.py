"""What the step graph lends to a cache layout, and what a cache layout adds to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx
from onnx import TensorProto

from dlm_edge.export.nodes import GraphBuilder
from dlm_edge.families.spec import ModelSpec
from dlm_edge.kernels import DOMAIN

Tensors = dict[str, tuple[int, list[int | str | None]]]
HALF, REAL, BYTE = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.UINT8
NUMBERS = ["start", "cache_len", "attn_block"]  # inputs that every layer's attention shares


@dataclass(frozen=True, slots=True)
class Window:
    """What a cache layout works on. q [B, n_heads, W, head_dim] after RoPE; h [B, W, hidden] after the norm."""

    layer: int
    q: str
    h: str


class Projections(Protocol):
    """What the step graph lends to a cache layout."""

    graph: GraphBuilder
    spec: ModelSpec
    body: int  # element type of activations
    copies: int | str  # B, the first dimension of the graph's input_ids: 1, or a name where it may be more

    def project(self, i: int, h: str, kind: str) -> str:
        """[B, rows, n_kv_heads * head_dim] before the bias."""

    def heads(self, i: int, projected: str, kind: str) -> str:
        """Bias, heads [B, n_kv_heads, rows, head_dim], and their norm where the family has one."""

    def rotated(self, x: str, cos: str, sin: str, name: str) -> str: ...

    def rope(self, positions: str, scope: str) -> tuple[str, str]:
        """cos and sin for int64 positions [rows]."""

    def window_rope(self) -> tuple[str, str]: ...

    def weight(self, i: int, kind: str) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """The matrix [out, in] that `project` multiplies by."""


class CacheNodes(Protocol):
    """`overload`: of PrefixBlockAttention. `takes_copies`: whether `attend`, in float32, works on more than one copy of
    the window. `projects_window_only`: no other rows go through the projections of keys and values. `numbers`: int64 [1] inputs of the graph beside those that every layout has.
    `stored`: outputs that leave for the caller to store, floats in the order in which the layout's append takes them."""

    overload: str
    takes_copies: bool
    projects_window_only: bool
    numbers: tuple[str, ...]

    def inputs(self, i: int, spec: ModelSpec, body: int) -> Tensors: ...

    def written(self) -> tuple[str, ...]:
        """Inputs that the graph writes, as outputs with the suffix _out."""

    def stored(self, i: int, spec: ModelSpec, body: int) -> Tensors: ...

    def attend(self, lent: Projections, window: Window, active: str, pages: str) -> str: ...

    def functions(self, n_layers: int) -> list[onnx.FunctionProto]: ...


def copies_of(takes_copies: bool, body: int) -> int | str:
    """The first dimension of input_ids. A float16 graph is meant for CUDA, whose operators take one copy."""
    return "copies" if takes_copies and body == REAL else 1


def kv_shape(spec: ModelSpec, length: str, copies: int | str = 1) -> list[int | str | None]:
    return [copies, spec.n_kv_heads, length, spec.head_dim]


def first_copy(lent: Projections, x: str, name: str) -> str:
    """Of x [B, ...] what the caches, which are of one sequence, can take: [1, ...]."""
    g = lent.graph
    return x if lent.copies == 1 else g.add("Slice", [x, g.integers(0), g.integers(1), g.integers(0)], name)


def window_keys(lent: Projections, window: Window) -> tuple[str, str]:
    """Keys after RoPE, and values, of the window: [B, n_kv_heads, W, head_dim]."""
    i = window.layer
    cos, sin = lent.window_rope()
    k = lent.rotated(lent.heads(i, lent.project(i, window.h, "k"), "k"), cos, sin, "k_rope")
    return k, lent.heads(i, lent.project(i, window.h, "v"), "v")


def call_attention(
    lent: Projections,
    window: Window,
    overload: str,
    keys: list[str],
    numbers: list[str],
    chosen: list[str],
    more: list[str],
) -> str:
    """`keys`: k, v, k_cache, v_cache; `numbers`: start, cache_len, attn_block; `chosen`: active, pages, masses."""
    g, i = lent.graph, window.layer
    state = [f"prefix_out.{i}", f"prefix_lse.{i}", chosen[2]]
    kept = [f"prefix_out_out.{i}", f"prefix_lse_out.{i}"]
    kept.append(f"masses_out.{i}" if chosen[2] == f"masses.{i}" else f"layers.{i}.no_masses")
    return g.add(
        "PrefixBlockAttention",
        [window.q, *keys, *numbers, *chosen[:2], f"layers.{i}.policy", *state, *more],
        "attention",
        more=kept,
        domain=DOMAIN,
        overload=overload,
    )
