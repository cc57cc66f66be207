"""XQuant: what is stored is what keys and values are computed from; those of the chosen pages are made again."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from dlm_edge.export.cache_nodes import leaving_codes
from dlm_edge.export.cache_nodes.contract import (
    BYTE,
    HALF,
    REAL,
    Projections,
    Tensors,
    Window,
    call_attention,
    kv_shape,
)
from dlm_edge.families.spec import ModelSpec
from dlm_edge.kernels import DOMAIN
from dlm_edge.kernels.dequantize_rows import function as dequantize_rows
from dlm_edge.kernels.dequantize_rows.reference import Axis
from dlm_edge.kernels.prefix_block_attention import sparse_function
from dlm_edge.kernels.quantize_rows import function as quantize_rows


class Rematerialised:
    """What the XQuant layouts share: rows of the chosen pages, and attention over keys computed from them."""

    overload = "sparse"
    takes_copies = False  # the rows that are made again go through the projections together with those of one window
    projects_window_only = False

    def __init__(self, bits: int, as_codes: bool = False) -> None:
        self.bits, self.as_codes = bits, as_codes
        self.numbers: tuple[str, ...] = leaving_codes.INPUTS if as_codes else ()

    def inputs(self, i: int, spec: ModelSpec, body: int) -> Tensors:
        raise NotImplementedError

    def floats(self, spec: ModelSpec) -> dict[str, int]:
        """Widths of the rows that leave as floats, by output."""
        raise NotImplementedError

    def stored(self, i: int, spec: ModelSpec, body: int) -> Tensors:
        if self.as_codes:
            return leaving_codes.code_outputs(self.inputs(i, spec, body), spec, body)
        rows: Tensors = {name: (body, [1, "window", width]) for name, width in self.floats(spec).items()}
        return rows | {"keys_new": (body, kv_shape(spec, "window"))}

    def written(self) -> tuple[str, ...]:
        return ()

    def chosen_rows(self, lent: Projections, window: Window, pages: str, like: str) -> str:
        """int64 [n]: positions of the cache on the chosen pages, without the window's. `like` is an input [capacity, ...]."""
        g = lent.graph
        capacity = g.add("Shape", [like], "capacity", start=0, end=1)
        slots = g.add("Shape", [pages], "n_slots", start=1, end=2)
        zero, one = g.integers(0), g.integers(1)
        size = g.add("Div", [capacity, slots], "page_size")
        first = g.add("Slice", [pages, zero, one, zero], "first_list")
        column = g.add("Reshape", [first, g.integers(-1, 1)], "page_column")
        spread = g.add("Expand", [column, g.add("Concat", [slots, size], "by_page", axis=0)], "spread")
        chosen = g.add("Cast", [g.add("Reshape", [spread, g.integers(-1)], "flat")], "on_page", to=TensorProto.BOOL)
        steps = [g.add("Squeeze", [zero], "zero"), g.add("Squeeze", [capacity], "end"), g.add("Squeeze", [one], "one")]
        positions = g.add("Range", steps, "slots_positions")
        length = g.add("Shape", [window.h], "length", start=1, end=2)
        before = g.add("Less", [positions, "start"], "before")
        after = g.add("GreaterOrEqual", [positions, g.add("Add", ["start", length], "window_end")], "after")
        outside = g.add("Or", [before, after], "outside")
        stored = g.add("And", [outside, g.add("Less", [positions, "cache_len"], "stored")], "readable")
        found = g.add("NonZero", [g.add("And", [chosen, stored], "wanted")], "found")
        return g.add("Reshape", [found, g.integers(-1)], "rows")

    def dequantized(self, lent: Projections, i: int, name: str, rows: str, bits: int, axis: Axis) -> str:
        """[n, width] in the body's dtype."""
        g = lent.graph
        values = g.add(
            dequantize_rows.OPERATOR,
            self.stored_codes(lent, i, name, rows, axis),
            f"{name}_rows",
            domain=DOMAIN,
            overload=dequantize_rows.overload(bits, axis),
            bits=bits,
            axis=axis,
        )
        return values if lent.body == REAL else g.add("Cast", [values], f"{name}_rows_body", to=lent.body)

    def stored_codes(self, lent: Projections, i: int, name: str, rows: str, axis: Axis) -> list[str]:
        """The inputs of DequantizeRows."""
        tail = f"{name}_tail.{i}" if axis == "channel" else self.no_tail(lent, i)
        return [f"{name}_cache.{i}", f"{name}_scale.{i}", f"{name}_low.{i}", tail, rows, "cache_len"]

    def no_tail(self, lent: Projections, i: int) -> str:
        width = self.width(lent.spec)
        return lent.graph.shared("no_tail", np.zeros((0, width), np.float32))

    def width(self, spec: ModelSpec) -> int:
        raise NotImplementedError

    def attend_rows(
        self, lent: Projections, window: Window, k_pre: str, v_pre: str, rows: str, active: str, pages: str
    ) -> str:
        """k_pre, v_pre [1, W + n, kv_width], the window's rows first: bias, norm and RoPE, then attention over n keys.

        The operator sees the n keys as one page right before the window, which keeps its place in the grid of blocks.
        """
        g, i = lent.graph, window.layer
        length = g.add("Shape", [window.h], "window_rows", start=1, end=2)
        positions = g.add("Concat", ["positions", rows], "all_positions", axis=0)
        cos, sin = lent.rope(positions, "all_")
        keys = lent.rotated(lent.heads(i, k_pre, "k"), cos, sin, "k_rope")
        values = lent.heads(i, v_pre, "v")
        zero, axis, far = g.integers(0), g.integers(2), g.integers(2**62)
        parts = []
        for name, whole in (("k", keys), ("v", values)):
            parts.append(g.add("Slice", [whole, zero, length, axis], f"{name}_window"))
            parts.append(g.add("Slice", [whole, length, far, axis], f"{name}_prefix"))
        if self.as_codes:
            leaving_codes.leave_keys(lent, window, parts[0])
        else:
            g.add_outer("Identity", [parts[0]], f"keys_new.{i}")  # for the bounds of their pages
        n = g.add("Shape", [rows], "n_rows", start=0, end=1)
        blocks = g.add(
            "Div",
            [g.add("Sub", [g.add("Add", [n, "attn_block"], "n_and_block"), g.integers(1)], "n_up"), "attn_block"],
            "n_blocks",
        )
        start = g.add("Mul", [blocks, "attn_block"], "compact_start")
        all_pages = g.shared("all_pages", np.ones((lent.spec.n_kv_heads, 1), np.uint8))
        masses = g.shared("no_masses", np.zeros((1, lent.spec.n_kv_heads, 1), np.float32))
        ordered = [parts[0], parts[2], parts[1], parts[3]]
        chosen = [active, all_pages, masses]
        return call_attention(lent, window, self.overload, ordered, [start, n, "attn_block"], chosen, [])


def code_tensors(name: str, width: int, bits: int, axis: Axis) -> Tensors:
    scales: list[int | str | None] = ["groups", width] if axis == "channel" else ["capacity", f"{name}_groups"]
    tensors: Tensors = {
        f"{name}_cache": (BYTE, ["capacity", width * bits // 8]),
        f"{name}_scale": (HALF, scales),
        f"{name}_low": (HALF, scales),
    }
    return tensors | ({f"{name}_tail": (REAL, ["group", width])} if axis == "channel" else {})


class StoredInput(Rematerialised):
    def width(self, spec: ModelSpec) -> int:
        return spec.hidden_size

    def bits_of(self, i: int) -> int:
        return self.bits

    def inputs(self, i: int, spec: ModelSpec, body: int) -> Tensors:
        return code_tensors("x", spec.hidden_size, self.bits_of(i), "token")

    def floats(self, spec: ModelSpec) -> dict[str, int]:
        return {"x_new": spec.hidden_size}

    def attend(self, lent: Projections, window: Window, active: str, pages: str) -> str:
        g, i = lent.graph, window.layer
        if not self.as_codes:
            g.add_outer("Identity", [window.h], f"x_new.{i}")
        else:
            if i == 0:
                self.group = leaving_codes.token_group(lent, f"x_scale.{i}", lent.spec.hidden_size)
            self.leave(lent, window)
        rows, stored = self.stored_rows(lent, window, pages)
        both = g.add("Concat", [window.h, g.add("Unsqueeze", [stored, g.integers(0)], "x_batch")], "x_both", axis=1)
        k_pre, v_pre = lent.project(i, both, "k"), lent.project(i, both, "v")
        return self.attend_rows(lent, window, k_pre, v_pre, rows, active, pages)

    def leave(self, lent: Projections, window: Window) -> None:
        floats = leaving_codes.as_floats(lent, window.h, "x_leaving")
        leaving_codes.leave_codes(lent, window.layer, "x", floats, self.group, self.bits, "token")

    def stored_rows(self, lent: Projections, window: Window, pages: str) -> tuple[str, str]:
        """Positions [n], and X [n, hidden] of them."""
        rows = self.chosen_rows(lent, window, pages, f"x_cache.{window.layer}")
        return rows, self.dequantized(lent, window.layer, "x", rows, self.bits, "token")

    def functions(self, n_layers: int) -> list[onnx.FunctionProto]:
        widths = sorted({self.bits_of(i) for i in range(n_layers)})
        decoders = [dequantize_rows.function_proto(b, "token") for b in widths]
        encoders = [quantize_rows.function_proto(b, "token") for b in widths if self.as_codes]
        return [sparse_function.function_proto("sparse"), *decoders, *encoders]
