"""W8A8 as nodes: activations rounded to int8 per row, an integer product, and two scales.

    scale = max |x| / 127 of a row (1 where it is zero), q = round(x / scale)       (dlm_edge.models.int8_linear)
    y     = ((q + 128 as u8, zero point 128) MatMulInteger (codes as s8)) * scale * weight scale

u8 x s8 is the fast integer path of ONNX Runtime on the CPU; s8 x s8 is not optimised, and DynamicQuantizeLinear would
give one scale to all rows. |q| cannot pass 127, so nothing is clipped.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from dlm_edge.export.nodes import GraphBuilder
from dlm_edge.quantized import QuantizedTensor, middle_code, unpack

LARGEST_CODE, ZERO_POINT = 127, 128
# Stands for the scale 1 of a zero row, whose codes and results are zero under any scale.
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


class RoundedRows:
    """Rows on their int8 grid; linears that share an input (q, k, v; gate, up) share its rounding."""

    def __init__(self, graph: GraphBuilder) -> None:
        self.graph = graph
        self._grids: dict[str, tuple[str, str]] = {}
        self._codes: dict[str, str] = {}
        self._values: dict[str, str] = {}
        self._masked: dict[tuple[str, bytes], str] = {}

    def grid(self, x: str) -> tuple[str, str]:
        """Codes -127 ... 127 as floats [..., in], and their scales [..., 1]."""
        if x not in self._grids:
            g, name = self.graph, local_name(self.graph, x)
            peak = g.add("ReduceMax", [g.add("Abs", [x], name + "_abs"), g.integers(-1)], name + "_peak", keepdims=1)
            step = g.add("Div", [peak, g.number("int8_largest", LARGEST_CODE)], name + "_step")
            scale = g.add("Max", [step, g.number("int8_smallest_scale", SMALLEST_SCALE)], name + "_scale")
            codes = g.add("Round", [g.add("Div", [x, scale], name + "_scaled")], name + "_rounded")
            self._grids[x] = codes, scale
        return self._grids[x]

    def unsigned(self, x: str) -> tuple[str, str]:
        """Codes + 128 as uint8, and the scales."""
        codes, scale = self.grid(x)
        if x not in self._codes:
            g, name = self.graph, local_name(self.graph, x)
            shifted = g.add("Add", [codes, g.number("int8_zero", ZERO_POINT)], name + "_shifted")
            self._codes[x] = g.add("Cast", [shifted], name + "_u8", to=TensorProto.UINT8)
        return self._codes[x], scale

    def dequantized(self, x: str) -> str:
        """The rounded values as floats, for products that are not integer."""
        if x not in self._values:
            codes, scale = self.grid(x)
            self._values[x] = self.graph.add("Mul", [codes, scale], local_name(self.graph, x) + "_int8_values")
        return self._values[x]

    def without(self, x: str, columns: NDArray[np.int64], width: int) -> str:
        """x with zeros in `columns`, so that they do not widen the grid of the others."""
        key = (x, columns.tobytes())
        if key not in self._masked:
            name = f"{local_name(self.graph, x)}_rest{len(self._masked)}"
            kept = np.ones(width, self.graph.float_dtype)
            kept[columns] = 0
            self._masked[key] = self.graph.add(
                "Mul", [x, self.graph.weight(f"{self.graph.scope}{name}_mask", kept)], name
            )
        return self._masked[key]


def integer_linear(
    graph: GraphBuilder, rounded: RoundedRows, x: str, role: str, tensor: QuantizedTensor, name: str
) -> str:
    """x [..., in] times an 8-bit weight [out, in] with one scale, and one integer zero or none, per row."""
    codes, scale = rounded.unsigned(x)
    middle = middle_code(8)
    weight = (unpack(tensor).T ^ np.uint8(middle)).view(np.int8)  # code - 128
    inputs = [codes, graph.weight(role + ".int8", weight), graph.byte("int8_zero_point", ZERO_POINT)]
    if tensor.zeros is not None:
        zeros = (tensor.zeros[:, 0].astype(np.int16) - middle).astype(np.int8)
        inputs.append(graph.weight(role + ".zeros", zeros))
    product = graph.add("MatMulInteger", inputs, name + "_int32")
    product = graph.add("Cast", [product], name + "_unscaled", to=TensorProto.FLOAT)
    product = graph.add("Mul", [product, scale], name + "_row_scaled")
    return graph.add("Mul", [product, graph.weight(role + ".scales", tensor.scales[:, 0])], name)


def local_name(graph: GraphBuilder, value: str) -> str:
    return value.removeprefix(graph.scope)
