"""How a stored weight becomes nodes: MatMulNBits for packed weights, MatMul for plain ones, and the embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.export.nodes import MICROSOFT, GraphBuilder
from dlm_edge.quantized import QuantizedTensor, container_bits


@dataclass(frozen=True, slots=True)
class Precision:
    """`body` is the dtype of activations and of weights that are not packed.

    `int8_activations` allows MatMulNBits to round activations to int8 (accuracy_level 4) where that is harmless.
    """

    body: np.dtype[Any]
    int8_activations: bool

    def accuracy_level(self, role: str, bits: int) -> int:
        """0 keeps activations in float, 4 rounds them to int8.

        The input of `down` carries the massive activations of diffusion models (arXiv 2508.14896), so it stays in
        float. On the CPU, 2 and 8 bits have only the int8 kernel: level 0 dequantizes the whole weight at every
        call (onnxruntime 1.31, 30 times slower), so it is used there only when int8 is not allowed at all.
        """
        if not self.int8_activations:
            return 0
        return 0 if bits == 4 and role.endswith("down.weight") else 4


class WeightNodes:
    """Turns roles of a checkpoint into nodes and keeps the list of quantized ones for the manifest."""

    def __init__(self, checkpoint: Checkpoint, graph: GraphBuilder, precision: Precision) -> None:
        self.checkpoint, self.graph, self.precision = checkpoint, graph, precision
        self.quantized: list[dict[str, Any]] = []

    def load(self, role: str) -> NDArray[Any]:
        """In the body's dtype; the largest weights of a model are gigabytes, so they are not copied for nothing."""
        return self.checkpoint.load(role).astype(self.precision.body, copy=False)

    def plain(self, role: str) -> str:
        """A norm gain, a bias or the embedding as an initializer in the body's dtype."""
        return self.graph.weight(role, self.load(role))

    def linear(self, x: str, role: str, name: str, bias: str | None = None) -> str:
        """x [1, W, in] times the weight of `role` [out, in], plus `bias` when the model has one."""
        packed = self.checkpoint.load_packed(role)
        if packed is not None:
            return self.n_bits(x, role, packed, name, bias)
        weight = self.load(role)
        out = self.graph.add("MatMul", [x, self.graph.weight(role, weight.T)], name)
        return self.graph.add("Add", [out, self.plain(bias)], name + "_biased") if bias else out

    def n_bits(self, x: str, role: str, packed: QuantizedTensor, name: str, bias: str | None = None) -> str:
        rows, columns = packed.shape
        bits = container_bits(packed.bits)
        level = self.precision.accuracy_level(role, bits)
        inputs = [
            x,
            self.graph.weight(role + ".packed", packed.packed),
            self.graph.weight(role + ".scales", packed.scales.astype(self.precision.body)),
        ]
        if bias:
            inputs += ["", "", self.plain(bias)]
        self.quantized.append({"name": role, "bits": bits, "group_size": packed.group_size, "accuracy_level": level})
        return self.graph.add(
            "MatMulNBits", inputs, name, domain=MICROSOFT, K=columns, N=rows, bits=bits,
            block_size=packed.group_size, accuracy_level=level,
        )  # fmt: skip

    def embedding(self, ids: str) -> str:
        packed = self.checkpoint.load_packed("embed.weight")
        if packed is None:
            return self.graph.add("Gather", [self.plain("embed.weight"), ids], "embed")
        inputs = [
            self.graph.weight("embed.weight.codes", packed.packed.reshape(packed.shape[0], -1)),
            ids,
            self.graph.weight("embed.weight.scales", packed.scales.astype(self.precision.body)),
        ]
        return self.graph.add(
            "GatherBlockQuantized", inputs, "embed", domain=MICROSOFT, bits=container_bits(packed.bits),
            block_size=packed.group_size, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def head(self, x: str, vocab_size: int) -> str:
        """Logits [R, vocab_size] of rows x [R, hidden]; padding rows of the vocabulary are not computed.

        A plain tied head shares the embedding's bytes, which the external data file stores once.
        """
        role = "embed.weight" if self.checkpoint.spec.tied_head else "head.weight"
        packed = self.checkpoint.load_packed(role)
        if packed is not None:
            cut = QuantizedTensor(packed.packed[:vocab_size], packed.scales[:vocab_size], packed.bits)
            return self.n_bits(x, "head.weight", cut, "logits_body")
        if role == "head.weight" or self.checkpoint.shape(role)[0] == vocab_size:
            table = self.graph.weight("head.weight", self.load(role)[:vocab_size])
            return self.graph.add("Gemm", [x, table], "logits_body", transB=1)
        logits = self.graph.add("Gemm", [x, "embed.weight"], "logits_padded", transB=1)
        bounds = [self.graph.integers(0), self.graph.integers(vocab_size), self.graph.integers(1)]
        return self.graph.add("Slice", [logits, *bounds], "logits_body")
