"""Layouts that store keys and values themselves, as floats or as codes."""

from __future__ import annotations

import onnx

from dlm_edge.export.cache_nodes import leaving_codes
from dlm_edge.export.cache_nodes.contract import (
    BYTE,
    HALF,
    NUMBERS,
    REAL,
    Projections,
    Tensors,
    Window,
    call_attention,
    copies_of,
    first_copy,
    kv_shape,
    window_keys,
)
from dlm_edge.families.spec import ModelSpec
from dlm_edge.kernels.dequantize_rows.reference import Axis
from dlm_edge.kernels.prefix_block_attention import sparse_function
from dlm_edge.kernels.quantize_rows import function as quantize_rows


class FloatCache:
    """In the body's dtype, or in float16 beside a float32 body."""

    takes_copies = True
    projects_window_only = True
    numbers: tuple[str, ...] = ()

    def __init__(self, half: bool = False) -> None:
        self.half = half
        self.overload = "sparse_fp16" if half else "sparse"

    def inputs(self, i: int, spec: ModelSpec, body: int) -> Tensors:
        kind = HALF if self.half else body
        return {f"{name}_cache": (kind, kv_shape(spec, "capacity")) for name in "kv"}

    def written(self) -> tuple[str, ...]:
        return ("k_cache", "v_cache")

    def stored(self, i: int, spec: ModelSpec, body: int) -> Tensors:
        return {}

    def attend(self, lent: Projections, window: Window, active: str, pages: str) -> str:
        g, i = lent.graph, window.layer
        k, v = window_keys(lent, window)
        caches = []
        for name, new in (("k_cache", k), ("v_cache", v)):
            new = first_copy(lent, new, f"{name}_first")
            if self.half and lent.body != HALF:
                new = g.add("Cast", [new], f"{name}_half", to=HALF)
            caches.append(g.add_outer("TensorScatter", [f"{name}.{i}", new, "start"], f"{name}_out.{i}", axis=2))
        return call_attention(lent, window, self.overload, [k, v, *caches], NUMBERS, [active, pages, f"masses.{i}"], [])

    def functions(self, n_layers: int) -> list[onnx.FunctionProto]:
        return [sparse_function.function_proto(self.overload)]


class QuantizedKv:
    """`planes`: codes of 8 bits in two planes of nibbles, of which the graph's input `planes` says how many are read."""

    takes_copies = True
    projects_window_only = True

    def __init__(self, bits: int, as_codes: bool = False, planes: bool = False) -> None:
        self.bits, self.as_codes, self.has_planes = bits, as_codes, planes
        self.overload = "int4x2" if planes else f"int{bits}"
        self.numbers: tuple[str, ...] = leaving_codes.INPUTS if as_codes else ()
        self.numbers += ("planes",) if planes else ()

    def inputs(self, i: int, spec: ModelSpec, body: int) -> Tensors:
        heads, dim = spec.n_kv_heads, spec.head_dim
        bits = 4 if self.has_planes else self.bits
        codes: tuple[int, list[int | str | None]] = (BYTE, [1, heads, "capacity", dim * bits // 8])
        by_channel: tuple[int, list[int | str | None]] = (HALF, [1, heads, "groups", dim])
        by_token: tuple[int, list[int | str | None]] = (HALF, [1, heads, "capacity", "channel_groups"])
        found: Tensors = {
            "k_cache": codes, "v_cache": codes, "k_scale": by_channel, "k_low": by_channel,
            "k_tail": (REAL, kv_shape(spec, "group")), "v_scale": by_token, "v_low": by_token,
        }  # fmt: skip
        return found | ({"k_lower": codes, "v_lower": codes} if self.has_planes else {})

    def written(self) -> tuple[str, ...]:
        return ()

    def stored(self, i: int, spec: ModelSpec, body: int) -> Tensors:
        copies = copies_of(self.takes_copies, body)
        if self.as_codes:
            whole = QuantizedKv(self.bits)  # planes are parted by whoever stores them
            return leaving_codes.code_outputs(whole.inputs(i, spec, body), spec, body, copies)
        return {name: (body, kv_shape(spec, "window", copies)) for name in ("k_new", "v_new")}

    def attend(self, lent: Projections, window: Window, active: str, pages: str) -> str:
        g, i = lent.graph, window.layer
        k, v = window_keys(lent, window)
        if self.as_codes:
            self.leave(lent, window, k, v)
        for name, value in (("k_new", k), ("v_new", v)) if not self.as_codes else ():
            g.add_outer("Identity", [value], f"{name}.{i}")
        caches = [f"k_cache.{i}", f"v_cache.{i}"]
        more = [f"{name}.{i}" for name in ("k_scale", "k_low", "k_tail", "v_scale", "v_low")]
        if self.has_planes:
            more += [f"k_lower.{i}", f"v_lower.{i}", "planes"]
        chosen = [active, pages, f"masses.{i}"]
        return call_attention(lent, window, self.overload, [k, v, *caches], NUMBERS, chosen, more)

    def leave(self, lent: Projections, window: Window, k: str, v: str) -> None:
        g, i = lent.graph, window.layer
        if i == 0:
            by_channel = leaving_codes.channel_group(lent, f"k_tail.{i}")
            self.groups = by_channel, leaving_codes.token_group(lent, f"v_scale.{i}", lent.spec.head_dim)
            sizes = [g.integers(-1), g.add("Shape", [k], "n_leaving", start=2, end=3), g.integers(lent.spec.head_dim)]
            self.by_head = g.add("Concat", sizes, "leaving_shape", axis=0)
        kinds: tuple[tuple[str, str, Axis], ...] = (("k", k, "channel"), ("v", v, "token"))
        for (name, value, axis), group in zip(kinds, self.groups, strict=True):
            heads = g.add("Reshape", [value, self.by_head], f"{name}_by_head")  # no rows of more than one copy leave
            floats = leaving_codes.as_floats(lent, heads, f"{name}_leaving")
            leaving_codes.leave_codes(lent, i, name, floats, group, self.bits, axis)
        leaving_codes.leave_keys(lent, window, k)

    def functions(self, n_layers: int) -> list[onnx.FunctionProto]:
        axes: tuple[Axis, ...] = ("channel", "token") if self.as_codes else ()
        quantizers = [quantize_rows.function_proto(self.bits, axis) for axis in axes]
        return [sparse_function.function_proto(self.overload), *quantizers]
