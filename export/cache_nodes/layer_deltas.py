"""XQuant-CL: as StoredInput, where each layer above the base adds its difference to the X of the layer below."""

from __future__ import annotations

from dlm_edge.export.cache_nodes import leaving_codes
from dlm_edge.export.cache_nodes.contract import Projections, Window
from dlm_edge.export.cache_nodes.rematerialised import StoredInput
from dlm_edge.kernels import DOMAIN
from dlm_edge.kernels.dequantize_rows import function as dequantize_rows
from dlm_edge.runtime.layouts.x_deltas import base_layer, layer_bits


class LayerDeltas(StoredInput):
    """All layers read the rows that the first one chose: a layer's X is the sum of what is stored below it."""

    def __init__(self, bits: int, as_codes: bool, n_layers: int) -> None:
        super().__init__(bits, as_codes)
        self.base, self.last = base_layer(n_layers), n_layers - 1
        self.rows, self.sum = "", ""
        self.new_sum = ""  # of the rows that are being stored: what later passes will read of them

    def bits_of(self, i: int) -> int:
        return layer_bits(i, self.bits)

    def stored_rows(self, lent: Projections, window: Window, pages: str) -> tuple[str, str]:
        i = window.layer
        if i == 0:
            self.rows = self.chosen_rows(lent, window, pages, f"x_cache.{i}")
        stored = self.dequantized(lent, i, "x", self.rows, self.bits_of(i), "token")
        self.sum = stored if i <= self.base else lent.graph.add("Add", [self.sum, stored], "x_sum")
        return self.rows, self.sum

    def leave(self, lent: Projections, window: Window) -> None:
        g, i, bits = lent.graph, window.layer, self.bits_of(window.layer)
        rows = leaving_codes.as_floats(lent, window.h, "x_leaving")
        if i > self.base:
            rows = g.add("Slice", [rows, g.integers(0), "stored_rows", g.integers(1)], "x_stored")
            rows = g.add("Sub", [rows, self.new_sum], "x_delta")
        codes = leaving_codes.leave_codes(lent, i, "x", rows, self.group, bits, "token")
        if self.base <= i < self.last:
            decoded = self.decoded_again(lent, codes, bits)
            self.new_sum = decoded if i == self.base else g.add("Add", [self.new_sum, decoded], "x_new_sum")

    def decoded_again(self, lent: Projections, codes: list[str], bits: int) -> str:
        """[1, stored_rows, hidden]: what DequantizeRows makes of these codes, scale and low."""
        g, zero = lent.graph, lent.graph.integers(0)
        ends = {"first": zero, "end": "stored_rows", "step": g.integers(1)}
        rows = g.add("Range", [g.add("Squeeze", [end], f"new_{name}") for name, end in ends.items()], "new_rows")
        fields = zip(("codes", "scale", "low"), codes, strict=True)
        flat = [g.add("Squeeze", [field, zero], f"new_{name}") for name, field in fields]
        decoded = g.add(
            dequantize_rows.OPERATOR,
            [*flat, self.no_tail(lent, 0), rows, "stored_rows"],
            "x_new_decoded",
            domain=DOMAIN,
            overload=dequantize_rows.overload(bits, "token"),
            bits=bits,
            axis="token",
        )
        return g.add("Unsqueeze", [decoded, zero], "x_new_batch")
