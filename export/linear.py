"""How a stored weight becomes nodes: linears of every form, the embedding, and the head."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.export.int8_linear import RoundedRows, integer_linear
from dlm_edge.export.n_bits import Precision, block_of, choose_form, n_bits, stored_codes
from dlm_edge.export.nodes import MICROSOFT, GraphBuilder
from dlm_edge.quantized import (
    CODEBOOK_BLOCK,
    CodebookTensor,
    LayerRecord,
    PackedWeight,
    QuantizedTensor,
    container_bits,
    dequantize,
    pack_codes,
)

CODEBOOK_TYPES = {"fp4": 0, "nf4": 1}  # quant_type of MatMulBnb4
SLOW_CODEBOOK = (
    "weights are {}: ONNX Runtime's CPU kernel for it is several times slower than that of "
    "4-bit integers (--method gptq)"
)


class WeightNodes:
    """Turns roles of a checkpoint into nodes; lists the packed ones for the manifest and what the user should know."""

    def __init__(self, checkpoint: Checkpoint, graph: GraphBuilder, precision: Precision) -> None:
        self.checkpoint, self.graph, self.precision = checkpoint, graph, precision
        self.quantized: list[dict[str, Any]] = []
        self._rounded = RoundedRows(graph)
        self._notices: Counter[str] = Counter()

    @property
    def notices(self) -> list[str]:
        """How many weights run otherwise than their form promises, and why."""
        return [f"{count} {text}" for text, count in self._notices.items()]

    def load(self, role: str) -> NDArray[Any]:
        """In the body's dtype; the largest weights of a model are gigabytes, so they are not copied for nothing."""
        return self.checkpoint.load(role).astype(self.precision.body, copy=False)

    def plain(self, role: str) -> str:
        """A norm gain, a bias or the embedding as an initializer in the body's dtype."""
        return self.graph.weight(role, self.load(role))

    def linear(self, x: str, role: str, name: str, bias: str | None = None) -> str:
        """x [..., in] times the weight of `role` [out, in], plus `bias` when the model has one."""
        packed, record = self.checkpoint.load_packed(role), self.checkpoint.layer_record(role)
        if packed is not None and record is not None:
            return self.packed_linear(x, role, packed, record, name, bias)
        weight = self.load(role)
        out = self.graph.add("MatMul", [x, self.graph.weight(role, weight.T)], name)
        return self.graph.add("Add", [out, self.plain(bias)], name + "_biased") if bias else out

    def packed_linear(
        self, x: str, role: str, tensor: PackedWeight, record: LayerRecord, name: str, bias: str | None = None
    ) -> str:
        g, addends = self.graph, [] if bias is None else [self.plain(bias)]
        entry: dict[str, Any] = {"name": role, "bits": tensor.bits, "zero": "symmetric", "accuracy_level": 0}
        if isinstance(tensor, CodebookTensor):
            entry |= {"form": "MatMulBnb4", "group_size": CODEBOOK_BLOCK, "activations": "float"}
            out = self.codebook(x, role, tensor, name)
        else:
            entry |= {"group_size": tensor.group_size, "zero": tensor.zero_kind}
            if tensor.outliers is not None:
                columns = g.weight(role + ".outlier_columns", tensor.outliers.columns)
                chosen = g.add("Gather", [x, columns], name + "_outliers", axis=-1)
                table = g.weight(role + ".outliers", tensor.outliers.weights.T.astype(self.precision.body))
                addends.append(g.add("MatMul", [chosen, table], name + "_outlier_product"))
            out = self.integers(x, role, tensor, record, name, entry)
        self.quantized.append(entry)
        for n, addend in enumerate(addends):
            out = g.add("Add", [out, addend], f"{name}_sum{n}")
        return out

    def integers(
        self, x: str, role: str, tensor: QuantizedTensor, record: LayerRecord, name: str, entry: dict[str, Any]
    ) -> str:
        """The product without outlier columns. Int8 activations are part of a checkpoint that was made for them; a
        float16 body has no kernel for them and keeps its activations, which is nearer to the original."""
        g, precision = self.graph, self.precision
        round_rows = record.activations == "int8" and precision.body == np.float32
        if record.activations == "int8" and not round_rows:
            self._notices["weights were made for int8 activations, which this target keeps in float16"] += 1
        runnable = block_of(tensor) is not None
        form = choose_form(tensor, precision, role, keep=round_rows)
        if record.activations == "exact" and form.accuracy_level:
            form = choose_form(tensor, precision, role, keep=True)
            self._notices["weights keep float activations, as quantizing measured outliers that need it"] += 1
        rounded_inside = runnable and form.accuracy_level > 0
        if tensor.outliers is not None and tensor.zero_kind != "float" and (round_rows or rounded_inside):
            x = self._rounded.without(x, tensor.outliers.columns, tensor.shape[1])
        if tensor.order is not None:
            x = g.add("Gather", [x, g.weight(role + ".order", tensor.order)], name + "_ordered", axis=-1)
        entry["activations"] = "int8" if round_rows else "float"
        if round_rows and tensor.bits == 8 and tensor.scales.shape[1] == 1 and tensor.zero_kind != "float":
            entry["form"] = "MatMulInteger"
            return integer_linear(g, self._rounded, x, role, tensor, name)
        if round_rows:
            x = self._rounded.dequantized(x)
        if runnable:
            entry |= {"form": "MatMulNBits", "accuracy_level": form.accuracy_level}
            return n_bits(g, x, role, tensor, form, name)
        entry["form"] = "MatMul"
        self._notices[f"weights run in float: no kernel for groups of {tensor.group_size}"] += 1
        weight = dequantize(replace(tensor, order=None, outliers=None))
        return g.add("MatMul", [x, g.weight(role, weight.T.astype(precision.body))], name)

    def codebook(self, x: str, role: str, tensor: CodebookTensor, name: str) -> str:
        """bitsandbytes' layout is that of MatMulBnb4, bit for bit."""
        if self.precision.body == np.float32:
            self._notices[SLOW_CODEBOOK.format(tensor.format)] += 1
        magnitudes = tensor.magnitudes.astype(self.precision.body)
        inputs = [
            x,
            self.graph.weight(role + ".packed", tensor.packed),
            self.graph.weight(role + ".scales", magnitudes),
        ]
        return self.graph.add(
            "MatMulBnb4", inputs, name, domain=MICROSOFT, K=tensor.shape[1], N=tensor.shape[0],
            block_size=CODEBOOK_BLOCK, quant_type=CODEBOOK_TYPES[tensor.format],
        )  # fmt: skip

    def embedding(self, ids: str) -> str:
        packed = self.checkpoint.load_packed("embed.weight")
        if packed is None or not can_gather(packed):
            if packed is not None:
                self._notices["embedding runs in float: no kernel for its form"] += 1
            return self.graph.add("Gather", [self.plain("embed.weight"), ids], "embed")
        assert isinstance(packed, QuantizedTensor)
        width = container_bits(packed.bits)
        inputs = [
            self.graph.weight("embed.weight.codes", stored_codes(packed).reshape(packed.shape[0], -1)),
            ids,
            self.graph.weight("embed.weight.scales", packed.scales.astype(self.precision.body)),
        ]
        if packed.zero_kind == "integer":
            assert packed.zeros is not None
            inputs.append(self.graph.weight("embed.weight.zeros", pack_codes(packed.zeros.astype(np.uint8), width)))
        return self.graph.add(
            "GatherBlockQuantized", inputs, "embed", domain=MICROSOFT, bits=width,
            block_size=packed.group_size, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def head(self, x: str, vocab_size: int) -> str:
        """Logits [R, vocab_size] of rows x [R, hidden]; padding rows of the vocabulary are not computed.

        A plain tied head shares the embedding's bytes, which the external data file stores once.
        """
        role = "embed.weight" if self.checkpoint.spec.tied_head else "head.weight"
        packed, record = self.checkpoint.load_packed(role), self.checkpoint.layer_record(role)
        if packed is not None and record is not None:
            if record.activations == "int8":  # ReduceMax does not stand an input without rows, and R may be 0
                self._notices["head was made for int8 activations, which it keeps in float"] += 1
                record = msgspec.structs.replace(record, activations="float")
            return self.packed_linear(x, "head.weight", first_rows(packed, vocab_size), record, "logits_body")
        if role == "head.weight" or self.checkpoint.shape(role)[0] == vocab_size:
            table = self.graph.weight("head.weight", self.load(role)[:vocab_size])
            return self.graph.add("Gemm", [x, table], "logits_body", transB=1)
        logits = self.graph.add("Gemm", [x, "embed.weight"], "logits_padded", transB=1)
        bounds = [self.graph.integers(0), self.graph.integers(vocab_size), self.graph.integers(1)]
        return self.graph.add("Slice", [logits, *bounds], "logits_body")


def can_gather(packed: PackedWeight) -> bool:
    """Whether GatherBlockQuantized reads this form; its blocks are powers of two from 16 up."""
    if isinstance(packed, CodebookTensor) or packed.zero_kind == "float":
        return False
    size = packed.group_size
    return packed.order is None and packed.outliers is None and size >= 16 and size & (size - 1) == 0


def first_rows(packed: PackedWeight, count: int) -> PackedWeight:
    """The first `count` rows; a codebook's blocks may run from one row into the next, so it keeps the block begun."""
    if isinstance(packed, CodebookTensor):
        size = count * packed.shape[1]
        codes, magnitudes = packed.packed[: -(-size // 2)], packed.magnitudes[: -(-size // CODEBOOK_BLOCK)]
        return CodebookTensor(codes, magnitudes, (count, packed.shape[1]), packed.format)
    outliers = packed.outliers
    return replace(
        packed,
        packed=packed.packed[:count],
        scales=packed.scales[:count],
        zeros=None if packed.zeros is None else packed.zeros[:count],
        outliers=None if outliers is None else replace(outliers, weights=outliers.weights[:count]),
    )
