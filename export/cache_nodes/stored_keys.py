"""Layouts that store keys and values themselves, as floats or as codes."""

from __future__ import annotations

import onnx

from dlm_edge.export.cache_nodes.contract import (
    BYTE,
    HALF,
    NUMBERS,
    REAL,
    Projections,
    Tensors,
    Window,
    call_attention,
    kv_shape,
    window_keys,
)
from dlm_edge.families.spec import ModelSpec
from dlm_edge.kernels.prefix_block_attention import sparse_function


class FloatCache:
    """In the body's dtype, or in float16 beside a float32 body."""

    def __init__(self, half: bool = False) -> None:
        self.half = half
        self.overload = "sparse_fp16" if half else "sparse"

    def inputs(self, i: int, spec: ModelSpec, body: int) -> Tensors:
        kind = HALF if self.half else body
        return {f"{name}_cache": (kind, kv_shape(spec, "capacity")) for name in "kv"}

    def written(self) -> tuple[str, ...]:
        return ("k_cache", "v_cache")

    def stored(self, spec: ModelSpec, body: int) -> Tensors:
        return {}

    def attend(self, lent: Projections, window: Window, active: str, pages: str) -> str:
        g, i = lent.graph, window.layer
        k, v = window_keys(lent, window)
        caches = []
        for name, new in (("k_cache", k), ("v_cache", v)):
            if self.half and lent.body != HALF:
                new = g.add("Cast", [new], f"{name}_half", to=HALF)
            caches.append(g.add_outer("TensorScatter", [f"{name}.{i}", new, "start"], f"{name}_out.{i}", axis=2))
        return call_attention(lent, window, self.overload, [k, v, *caches], NUMBERS, [active, pages, f"masses.{i}"], [])

    def functions(self, n_layers: int) -> list[onnx.FunctionProto]:
        return [sparse_function.function_proto(self.overload)]


class QuantizedKv:
    def __init__(self, bits: int) -> None:
        self.bits, self.overload = bits, f"int{bits}"

    def inputs(self, i: int, spec: ModelSpec, body: int) -> Tensors:
        heads, dim = spec.n_kv_heads, spec.head_dim
        codes: tuple[int, list[int | str | None]] = (BYTE, [1, heads, "capacity", dim * self.bits // 8])
        by_channel: tuple[int, list[int | str | None]] = (HALF, [1, heads, "groups", dim])
        by_token: tuple[int, list[int | str | None]] = (HALF, [1, heads, "capacity", "channel_groups"])
        return {
            "k_cache": codes, "v_cache": codes, "k_scale": by_channel, "k_low": by_channel,
            "k_tail": (REAL, kv_shape(spec, "group")), "v_scale": by_token, "v_low": by_token,
        }  # fmt: skip

    def written(self) -> tuple[str, ...]:
        return ()

    def stored(self, spec: ModelSpec, body: int) -> Tensors:
        return {name: (body, kv_shape(spec, "window")) for name in ("k_new", "v_new")}

    def attend(self, lent: Projections, window: Window, active: str, pages: str) -> str:
        g, i = lent.graph, window.layer
        k, v = window_keys(lent, window)
        for name, value in (("k_new", k), ("v_new", v)):
            g.add_outer("Identity", [value], f"{name}.{i}")
        caches = [f"k_cache.{i}", f"v_cache.{i}"]
        more = [f"{name}.{i}" for name in ("k_scale", "k_low", "k_tail", "v_scale", "v_low")]
        chosen = [active, pages, f"masses.{i}"]
        return call_attention(lent, window, self.overload, [k, v, *caches], NUMBERS, chosen, more)

    def functions(self, n_layers: int) -> list[onnx.FunctionProto]:
        return [sparse_function.function_proto(self.overload)]
