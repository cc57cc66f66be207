"""Layers that are finished: what goes into their files beside the packed weights, and how they are loaded again."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from dlm_edge import files
from dlm_edge.checkpoint.formats.imatrix import gguf_name, write_imatrix
from dlm_edge.models.int8_linear import with_int8_activations
from dlm_edge.models.streamed import layer_roles
from dlm_edge.models.transformer import Layer
from dlm_edge.quant.layer_file import StoredTensor, read_packed_tensor, read_plain, write_layer_file
from dlm_edge.quant.moments import Moments
from dlm_edge.quant.plan import Plan
from dlm_edge.quant.source_weights import SourceWeights
from dlm_edge.quantized import LayerRecord, QuantizedTensor, dequantize
from dlm_edge.work_folder import WorkFolder

IMATRIX = "imatrix.dat"


def layer_key(i: int) -> str:
    return f"layer-{i:04}"


def file_name(key: str) -> str:
    return f"{key}.safetensors"


def moments_key(i: int) -> str:
    return f"moments-{i:04}"


class FinishedLayers:
    """Reads what `work` has recorded; the hashes of its files were confirmed when it was opened."""

    def __init__(self, work: WorkFolder, plan: Plan, weights: SourceWeights) -> None:
        self.work, self.plan, self.weights = work, plan, weights

    def has_layer(self, i: int) -> bool:
        return self.work.is_done(layer_key(i))

    def has_moments(self, i: int) -> bool:
        """Once all of them are in one file, those of single layers may be gone."""
        return self.work.is_done(moments_key(i)) or self.work.is_done(IMATRIX)

    def lines(self) -> list[dict[str, Any]]:
        """Journal lines of the layers in layer order."""
        return [self.work.records[layer_key(i)] for i in range(self.plan.spec.n_layers)]

    def where(self, *others: str) -> dict[str, str]:
        """Stored tensor name to file, of all layers and the `others`."""
        lines = [*self.lines(), *(self.work.records[key] for key in others)]
        return {name: file_name(line["key"]) for line in lines for name in line["tensors"]}

    def layer(self, i: int) -> Layer:
        """Layer `i` with the weights that its run left, in float32."""
        line, path = self.work.records[layer_key(i)], self.work.path / file_name(layer_key(i))
        records = {record.name: record for record in msgspec.convert(line["layers"], list[LayerRecord])}
        prefix = f"layers.{i}."
        with torch.device("meta"):
            layer = Layer(self.plan.spec)
        state = {}
        for role in layer_roles(layer, prefix):
            name = self.plan.name_of(role)
            if name in records:
                columns = self.plan.checkpoint.shape(role)[1]
                state[role.removeprefix(prefix)] = torch.from_numpy(
                    dequantize(read_packed_tensor(path, records[name], columns))
                )
            else:
                state[role.removeprefix(prefix)] = read_plain(path, name)
        layer.load_state_dict(state, assign=True)
        return layer.eval().requires_grad_(False)

    def round_inputs(self, i: int, layer: Layer) -> Layer:
        """Layer `i` as it runs: linears whose record says int8 activations get them, in place."""
        line, path = self.work.records[layer_key(i)], self.work.path / file_name(layer_key(i))
        linears = {name: linear for linear, name in self.plan.names(i).items()}
        for record in msgspec.convert(line["layers"], list[LayerRecord]):
            if record.activations != "int8":
                continue
            linear, columns = linears[record.name], []
            if record.outlier_columns:
                width = self.plan.checkpoint.shape(f"layers.{i}.{linear}.weight")[1]
                packed = read_packed_tensor(path, record, width)
                if isinstance(packed, QuantizedTensor) and packed.outliers is not None:
                    columns = packed.outliers.columns.tolist()
            setattr(layer, linear, with_int8_activations(getattr(layer, linear), columns))
        return layer

    def plain_tensors(self, i: int, layer: Layer) -> list[StoredTensor]:
        """What is not packed in layer `i`: the source's bytes, or float32 where folding or tuning changed the values."""
        source, prefix, stored = self.plan.checkpoint, f"layers.{i}.", []
        for role in layer_roles(layer, prefix):
            if role in self.plan.roles:
                continue
            values, name = layer.get_parameter(role.removeprefix(prefix)).numpy(), self.plan.name_of(role)
            if self.weights.is_changed(role, values):
                pieces = [np.ascontiguousarray(values, "<f4").tobytes()]
                stored.append(StoredTensor(name, "F32", values.shape, pieces))
            else:
                stored.append(StoredTensor(name, source.dtype(role), source.shape(role), self.weights.stored(role)))
        return stored

    def packed_outer(self, key: str, role: str) -> QuantizedTensor:
        """The embedding or head as it was packed."""
        found = msgspec.convert(self.work.records[key]["layers"], list[LayerRecord])
        record = next(r for r in found if r.name == self.plan.name_of(role))
        width = self.weights.shape(role)[1]
        tensor = read_packed_tensor(self.work.path / file_name(key), record, width)
        assert isinstance(tensor, QuantizedTensor)
        return tensor

    def gathered_embedding(self, key: str, ids: Tensor) -> Tensor:
        """Rows `ids` [...] of the packed embedding, [..., width]."""
        table = self.packed_outer(key, "embed.weight")
        wanted, places = torch.unique(ids, return_inverse=True)
        rows = QuantizedTensor(table.packed[wanted.numpy()], table.scales[wanted.numpy()], table.bits)
        return torch.from_numpy(dequantize(rows))[places]

    def write_moments(self, i: int, moments: dict[str, Moments]) -> None:
        """Keep sum c x^2 of every quantized linear of layer `i` in a file of its own."""
        tensors, tokens, name = [], [], file_name(moments_key(i))
        for linear in self.plan.names(i):
            role, squares = f"layers.{i}.{linear}.weight", moments[linear].squares.numpy()
            tensors.append(StoredTensor(gguf_name(role), "F32", squares.shape, [squares.astype("<f4").tobytes()]))
            tokens.append({"name": gguf_name(role), "tokens": moments[linear].tokens})
        write_layer_file(self.work.path / name, tensors)
        self.work.record(moments_key(i), names=[name], moments=tokens)

    def write_imatrix(self) -> None:
        """All moments in one file as llama.cpp reads it; those of single layers go.

        The journal knows of it before they do: a job that is killed here keeps its layers.
        """
        n_layers = self.plan.spec.n_layers
        if not self.work.is_done(IMATRIX):
            entries = dict[str, tuple[Any, int]]()
            for key in map(moments_key, range(n_layers)):
                with safe_open(self.work.path / file_name(key), "numpy") as file:
                    found = self.work.records[key]["moments"]
                    entries |= {e["name"]: (file.get_tensor(e["name"]), int(e["tokens"])) for e in found}
            write_imatrix(self.work.path / IMATRIX, entries, dataset=str(self.plan.checkpoint.name))
            self.work.record(IMATRIX, names=[IMATRIX])
        for path in sorted(self.work.path.glob(file_name("moments-*"))):
            with files.io_errors(path, "cannot remove"):
                files.calls.unlink(path)
