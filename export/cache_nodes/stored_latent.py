"""XQuant for grouped heads: what is stored are latents, as wide as keys and values."""

from __future__ import annotations

import onnx

from dlm_edge.export.cache_nodes import leaving_codes
from dlm_edge.export.cache_nodes.contract import HALF, Projections, Tensors, Window
from dlm_edge.export.cache_nodes.rematerialised import Rematerialised, code_tensors
from dlm_edge.families.spec import ModelSpec
from dlm_edge.kernels import DOMAIN
from dlm_edge.kernels.dequantize_rows import function as dequantize_rows
from dlm_edge.kernels.dequantize_rows.latents import latent_maps
from dlm_edge.kernels.dequantize_rows.reference import Axis
from dlm_edge.kernels.prefix_block_attention import sparse_function
from dlm_edge.kernels.quantize_rows import function as quantize_rows
from dlm_edge.kernels.rematerialise_rows import function as rematerialise_rows

LATENTS: tuple[tuple[str, Axis], ...] = (("k", "channel"), ("v", "token"))


class StoredLatent(Rematerialised):
    """In a float16 body, which is meant for CUDA, rows and their projection are one node; on the CPU they are two, and the
    product is ONNX Runtime's."""

    def __init__(self, bits: int, as_codes: bool = False) -> None:
        super().__init__(bits, as_codes)
        self.is_fused = False
        self.groups: dict[str, str] = {}

    def width(self, spec: ModelSpec) -> int:
        return spec.kv_width

    def inputs(self, i: int, spec: ModelSpec, body: int) -> Tensors:
        width = spec.kv_width
        return code_tensors("k", width, self.bits, "channel") | code_tensors("v", width, self.bits, "token")

    def floats(self, spec: ModelSpec) -> dict[str, int]:
        return {"k_new": spec.kv_width, "v_new": spec.kv_width}

    def attend(self, lent: Projections, window: Window, active: str, pages: str) -> str:
        g, i = lent.graph, window.layer
        self.is_fused = lent.body == HALF
        rows = self.chosen_rows(lent, window, pages, f"k_cache.{i}")
        both = []
        for kind, axis in LATENTS:
            maps = latent_maps(lent.weight(i, kind))
            projected = lent.project(i, window.h, kind)
            to_latent = g.weight(f"layers.{i}.{kind}.to_latent", maps.to_latent.astype(g.float_dtype))
            from_latent = g.weight(f"layers.{i}.{kind}.from_latent", maps.from_latent.astype(g.float_dtype))
            self.leave(lent, i, kind, axis, [projected, to_latent])
            remade = self.remade(lent, i, kind, rows, axis, from_latent)
            batch = g.add("Unsqueeze", [remade, g.integers(0)], f"{kind}_batch")
            both.append(g.add("Concat", [projected, batch], f"{kind}_both", axis=1))
        return self.attend_rows(lent, window, both[0], both[1], rows, active, pages)

    def leave(self, lent: Projections, i: int, kind: str, axis: Axis, factors: list[str]) -> None:
        """Latents, the product of `factors`: of all rows, or as codes of those that the caller wants."""
        g = lent.graph
        if not self.as_codes:
            g.add_outer("MatMul", factors, f"{kind}_new.{i}")
            return
        if i == 0 and axis == "channel":
            self.groups[kind] = leaving_codes.channel_group(lent, f"{kind}_tail.0")
        elif i == 0:
            self.groups[kind] = leaving_codes.token_group(lent, f"{kind}_scale.0", lent.spec.kv_width)
        wanted = g.add("Slice", [factors[0], g.integers(0), "stored_rows", g.integers(1)], f"{kind}_stored")
        product = g.add("MatMul", [wanted, factors[1]], f"{kind}_latents")
        latents = leaving_codes.as_floats(lent, product, f"{kind}_leaving")
        leaving_codes.leave_codes(lent, i, kind, latents, self.groups[kind], self.bits, axis)

    def remade(self, lent: Projections, i: int, kind: str, rows: str, axis: Axis, from_latent: str) -> str:
        """[n, kv_width], before the bias."""
        if not self.is_fused:
            latent = self.dequantized(lent, i, kind, rows, self.bits, axis)
            return lent.graph.add("MatMul", [latent, from_latent], f"{kind}_remade")
        return lent.graph.add(
            rematerialise_rows.OPERATOR,
            [*self.stored_codes(lent, i, kind, rows, axis), from_latent],
            f"{kind}_remade",
            domain=DOMAIN,
            overload=dequantize_rows.overload(self.bits, axis),
            bits=self.bits,
            axis=axis,
        )

    def functions(self, n_layers: int) -> list[onnx.FunctionProto]:
        made_by = (rematerialise_rows if self.is_fused else dequantize_rows).function_proto
        encoders = [quantize_rows.function_proto(self.bits, axis) for _, axis in LATENTS if self.as_codes]
        decoders = [made_by(self.bits, axis) for _, axis in LATENTS]
        return [sparse_function.function_proto("sparse"), *decoders, *encoders]
