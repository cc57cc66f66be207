"""How a stored weight of a layer becomes nodes, in every form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.export.int8_linear import RoundedRows, integer_linear
from dlm_edge.export.n_bits import block_of, choose_form, n_bits
from dlm_edge.export.nodes import MICROSOFT, GraphBuilder
from dlm_edge.export.profiles import INT8_KERNELS, Kernel, Precision
from dlm_edge.export.q_linear import q_linear, runs_as_q_linear, stacked
from dlm_edge.quantized import (
    CODEBOOK_BLOCK,
    CodebookTensor,
    LayerRecord,
    PackedWeight,
    QuantizedTensor,
    dequantize,
)

Q_LINEAR = {"form": "QLinear", "activations": "int8"}  # in the manifest
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

    def notice(self, text: str) -> None:
        self._notices[text] += 1

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
        kernel = kernel_of(self.precision.kernel, role, tensor, record)
        self.tell(record)
        entry = self.entry(role, tensor)
        if kernel == "qlinear":
            assert isinstance(tensor, QuantizedTensor)
            self.quantized.append(entry | Q_LINEAR)
            bias_values = None if bias is None else self.load(bias)
            return q_linear(self.graph, x, role, tensor, name, bias_values, row_blocks=in_blocks(record))
        g, addends = self.graph, [] if bias is None else [self.plain(bias)]
        if kernel == "float":
            out = self.unpacked(x, role, tensor, name, entry)
        elif isinstance(tensor, CodebookTensor):
            out = self.codebook(x, role, tensor, name)
        else:
            if tensor.outliers is not None:
                columns = g.weight(role + ".outlier_columns", tensor.outliers.columns)
                chosen = g.add("Gather", [x, columns], name + "_outliers", axis=-1)
                table = g.weight(role + ".outliers", tensor.outliers.weights.T.astype(self.precision.body))
                addends.append(g.add("MatMul", [chosen, table], name + "_outlier_product"))
            out = self.integers(x, role, tensor, record, kernel, name, entry)
        self.quantized.append(entry)
        for n, addend in enumerate(addends):
            out = g.add("Add", [out, addend], f"{name}_sum{n}")
        return out

    def tell(self, record: LayerRecord) -> None:
        """Notices for a weight that does not run as the profile, or as its record, promises."""
        wanted = self.precision.kernel
        if wanted in INT8_KERNELS and record.activations == "exact":
            self.notice("weights keep float activations, as quantizing measured outliers that need it")
        if wanted not in INT8_KERNELS and record.activations == "int8":
            what = "this target" if self.precision.body != np.float32 else "this profile"
            self.notice(f"weights were made for int8 activations, which {what} keeps in float")

    @staticmethod
    def entry(role: str, tensor: PackedWeight) -> dict[str, Any]:
        """What the manifest says of a packed weight."""
        entry: dict[str, Any] = {"name": role, "bits": tensor.bits, "zero": "symmetric", "accuracy_level": 0}
        if isinstance(tensor, CodebookTensor):
            return entry | {"form": "MatMulBnb4", "group_size": CODEBOOK_BLOCK, "activations": "float"}
        return entry | {"group_size": tensor.group_size, "zero": tensor.zero_kind}

    def unpacked(self, x: str, role: str, tensor: PackedWeight, name: str, entry: dict[str, Any]) -> str:
        """As a float product, outlier columns included."""
        entry |= {"form": "MatMul", "activations": "float"}
        return self.graph.add(
            "MatMul", [x, self.graph.weight(role, dequantize(tensor).T.astype(self.precision.body))], name
        )

    def integers(
        self,
        x: str,
        role: str,
        tensor: QuantizedTensor,
        record: LayerRecord,
        kernel: Kernel,
        name: str,
        entry: dict[str, Any],
    ) -> str:
        """The product without outlier columns."""
        g = self.graph
        round_rows = kernel == "integer" or record.activations == "int8" and kernel == "blocks"
        form = choose_form(tensor, self.precision, role, keep=round_rows or kernel == "n_bits")
        rounds = round_rows or block_of(tensor) is not None and form.accuracy_level > 0
        if tensor.outliers is not None and tensor.zero_kind != "float" and rounds:
            x = self._rounded.without(x, tensor.outliers.columns, tensor.shape[1])
        if tensor.order is not None:
            x = g.add("Gather", [x, g.weight(role + ".order", tensor.order)], name + "_ordered", axis=-1)
        entry["activations"] = "int8" if round_rows else "float"
        if kernel == "integer":
            entry["form"] = "MatMulInteger"
            return integer_linear(g, self._rounded, x, role, tensor, name)
        if round_rows:
            x = self._rounded.dequantized(x)
        if block_of(tensor) is None:
            entry["form"] = "MatMul"
            self.notice(f"weights run in float: no kernel for groups of {tensor.group_size}")
            weight = dequantize(replace(tensor, order=None, outliers=None))
            return g.add("MatMul", [x, g.weight(role, weight.T.astype(self.precision.body))], name)
        entry |= {"form": "MatMulNBits", "accuracy_level": form.accuracy_level}
        return n_bits(g, x, role, tensor, form, name)

    def side_by_side(self, x: str, roles: Sequence[str], name: str, biases: Sequence[str] = ()) -> str | None:
        """x times several weights as one QLinear, their outputs one after the other; None where that cannot be."""
        packed = [self.checkpoint.load_packed(role) for role in roles]
        records = [self.checkpoint.layer_record(role) for role in roles]
        tensors = [tensor for tensor in packed if isinstance(tensor, QuantizedTensor)]
        activations = {None if record is None else record.activations for record in records}
        alike = len(activations) == 1 and not activations & {None, "exact"} and len(tensors) == len(roles)
        whole = stacked(tensors) if alike and self.precision.kernel == "qlinear" else None
        if whole is None:
            return None
        self.quantized += [self.entry(role, tensor) | Q_LINEAR for role, tensor in zip(roles, tensors, strict=True)]
        bias = np.concatenate([self.load(role) for role in biases]) if biases else None
        role = "_".join([roles[0].removesuffix(".weight"), *(each.split(".")[-2] for each in roles[1:])])
        return q_linear(self.graph, x, role, whole, name, bias, row_blocks="int8" not in activations)

    def codebook(self, x: str, role: str, tensor: CodebookTensor, name: str) -> str:
        """bitsandbytes' layout is that of MatMulBnb4, bit for bit."""
        if self.precision.body == np.float32:
            self.notice(SLOW_CODEBOOK.format(tensor.format))
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


def in_blocks(record: LayerRecord) -> bool:
    """Whether QLinear rounds a row in blocks: nearer to the row than one scale, which is part of weights made for that."""
    return record.activations != "int8"


def kernel_of(wanted: Kernel, role: str, tensor: PackedWeight, record: LayerRecord) -> Kernel:
    """The profile's kernel, unless the weight or its record does not allow it."""
    if wanted == "float" or isinstance(tensor, CodebookTensor):
        return "float" if wanted == "float" else "n_bits"
    if wanted in INT8_KERNELS and record.activations == "exact":
        wanted = "n_bits"
    if wanted == "qlinear" and runs_as_q_linear(tensor):
        return wanted
    # ReduceMax, in the rounding of rows, does not stand an input without rows, and no logits may be asked for.
    whole = tensor.bits == 8 and tensor.scales.shape[1] == 1 and tensor.zero_kind != "float" and role != "head.weight"
    if whole and (wanted == "integer" or wanted == "blocks" and record.activations == "int8"):
        return "integer"
    return "n_bits" if wanted == "n_bits" else "blocks"
