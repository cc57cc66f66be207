"""A quantized checkpoint in the layout of another tool: what is refused, and how config and weights are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dlm_edge
from dlm_edge import files
from dlm_edge.checkpoint import Checkpoint
from dlm_edge.checkpoint.foreign import KEY
from dlm_edge.checkpoint.formats import WRITERS, Writer
from dlm_edge.checkpoint.formats.format import LayerToWrite
from dlm_edge.checkpoint.safetensors_writer import StoredTensor, write_safetensors
from dlm_edge.checkpoint.shards import INDEX, PICKLED, SINGLE
from dlm_edge.errors import JobError
from dlm_edge.journal import JOURNAL
from dlm_edge.quantized import RECORD_NAME, LayerRecord, QuantizedTensor
from dlm_edge.work_folder import CONVERSION_NAME

IMATRIX_NAME = "imatrix.dat"  # what `quantize --imatrix` leaves in the checkpoint
SHARD_BYTES = 4 << 30
ROWS = 4096  # of an embedding, dequantized at a time
NOT_COPIED = {RECORD_NAME, CONVERSION_NAME, INDEX, JOURNAL, IMATRIX_NAME, "config.json"}


class Conversion:
    """What is to be written, decided from headers alone. Raises E-QUANT for what the format cannot hold."""

    def __init__(self, source: Checkpoint, format: str, say: Callable[[str], None]) -> None:
        self.source, self.format, self.say = source, format, say
        self.writer: Writer = WRITERS[format]
        self.notes: list[str] = []
        self.layers = {role: layer for role in source.roles() if (layer := self._layer(role))}
        if not self.layers:
            message = f"{source.name} has no layer in packed integers"
            raise JobError("E-QUANT", message, "quantize it first: dlm-edge quantize")
        plain = [
            r for r in source.roles() if len(source.shape(r)) == 2 and r not in self.layers and r != "embed.weight"
        ]
        modules = [source.tensor_name(role).removesuffix(".weight") for role in plain]
        self.config = self.writer.config(list(self.layers.values()), modules)
        self.dequantized = [r for r in source.roles() if r not in self.layers and source.layer_record(r)]
        self._note_roundings()
        self._last: tuple[str, dict[str, NDArray[Any]]] | None = None

    def _layer(self, role: str) -> LayerToWrite | None:
        """None for what stays in floating point, or becomes so: engines want embedding and head as they are."""
        packed, rows_and_columns = self.source.packed_layer(role), self.source.shape(role)
        if packed is None or not role.startswith("layers."):
            return None
        layer = LayerToWrite(
            name=self.source.tensor_name(role),
            shape=(rows_and_columns[0], rows_and_columns[1]),
            record=packed.record,
            scale_dtype=packed.scale_dtype,
        )
        refused = general_refusal(packed.record) or self.writer.refusal(layer)
        if refused is not None:
            what, instead = refused
            raise JobError("E-QUANT", f"{layer.name}: {self.format} cannot hold {what}", instead)
        if self.format == "gptq" and packed.record.zero == "integer":
            self._check_zeros(role, layer)
        return layer

    def _check_zeros(self, role: str, layer: LayerToWrite) -> None:
        """Version 1 stores zero - 1, and readers do not agree on what a zero of 0 then is."""
        weight = self.source.load_packed(role)
        assert isinstance(weight, QuantizedTensor) and weight.zeros is not None
        if (weight.zeros == 0).any():
            raise JobError("E-QUANT", f"{layer.name}: gptq cannot hold zero points of 0 safely", "use gptq_v2")

    def _note_roundings(self) -> None:
        if self.dequantized:
            names = ", ".join(self.source.tensor_name(role) for role in self.dequantized)
            self.notes.append(f"{names} written in float16: the engines that read this format want them so")
        coarse = [layer for layer in self.layers.values() if layer.scale_dtype != "F16"]
        if self.writer.half_scales and coarse:
            self.notes.append(f"the scales of {len(coarse)} layers rounded to float16, which {self.format} prescribes")

    def write(self, folder: Path) -> None:
        """Config, weights and the files beside them; the note about the conversion goes last."""
        for note in self.notes:
            self.say(f"note      {note}")
        shards = self.shards()
        names = [shard_name(i, len(shards)) for i in range(len(shards))]
        where: dict[str, str] = {}
        for name, roles in zip(names, shards, strict=True):
            self.say(f"writing   {name}: {len(roles)} weights")
            tensors = [tensor for role in roles for tensor in self.stored(role)]
            write_safetensors(folder / name, tensors)
            where |= {tensor.name: name for tensor in tensors}
        if len(names) > 1:
            size = sum(tensor.size_bytes for role in self.source.roles() for tensor in self.stored(role))
            files.write_json(
                folder / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
            )
        for path in sorted(self.source.path.iterdir()):
            if path.is_file() and path.name not in NOT_COPIED and not path.name.endswith((".safetensors", *PICKLED)):
                files.write_file(folder / path.name, path.read_bytes())
        files.write_json(folder / "config.json", self.new_config())
        about = {"tool_version": dlm_edge.__version__, "format": self.format, "source": self.source.name}
        files.write_json(folder / CONVERSION_NAME, about | {"layers": len(self.layers), "notes": self.notes})

    def new_config(self) -> dict[str, Any]:
        """The source's config with the form of the weights; AWQ kernels compute in float16 only."""
        config = {key: value for key, value in self.source.config.items() if key != KEY}
        dtype = config.get("dtype") or config.get("torch_dtype")
        if self.format == "awq" or dtype not in ("float16", "bfloat16"):
            dtype = "float16"
        return config | {"torch_dtype": dtype, "dtype": dtype, KEY: self.config}

    def shards(self) -> list[list[str]]:
        """Roles in layer order, cut where a file would pass SHARD_BYTES."""
        shards: list[list[str]] = [[]]
        filled = 0
        for role in self.source.roles():
            size = sum(tensor.size_bytes for tensor in self.stored(role))
            if shards[-1] and filled + size > SHARD_BYTES:
                shards.append([])
                filled = 0
            shards[-1].append(role)
            filled += size
        return shards

    def stored(self, role: str) -> list[StoredTensor]:
        name, shape = self.source.tensor_name(role), self.source.shape(role)
        if role in self.layers:
            parts = self.writer.parts(self.layers[role])
            return [StoredTensor(n, dtype, size, self.part(role, n)) for n, (dtype, size) in parts.items()]
        if role in self.dequantized:
            return [StoredTensor(name, "F16", shape, self.halves(role))]
        return [StoredTensor(name, self.source.dtype(role), shape, self.source.stored_pieces(role))]

    def part(self, role: str, name: str) -> Iterator[bytes]:
        """The parts of a weight follow each other in the file, so one weight at a time is in memory."""
        if self._last is None or self._last[0] != role:
            weight, layer = self.source.load_packed(role), self.layers[role]
            assert isinstance(weight, QuantizedTensor)
            if self.writer.half_scales:
                check_half_scales(layer, weight, self.format)
            self._last = role, self.writer.tensors(layer, weight)
        yield np.ascontiguousarray(self._last[1][name]).tobytes()

    def halves(self, role: str) -> Iterator[bytes]:
        rows = self.source.shape(role)[0]
        for first in range(0, rows, ROWS):
            values = self.source.load_rows(role, first, min(rows, first + ROWS))
            if np.abs(values).max() > np.finfo(np.float16).max:
                raise JobError(
                    "E-QUANT", f"{role} has values beyond float16", "keep it in floating point: quantize --skip"
                )
            yield values.astype("<f2").tobytes()


def general_refusal(record: LayerRecord) -> tuple[str, str] | None:
    """What none of the formats can hold: the name of it, and what to use instead."""
    again = "quantize again with another method"
    if record.format != "int":
        return f"{record.format} codes", "quantize again with an integer method"
    if record.zero == "float":
        return "float zeros", "quantize again with --zero integer"
    if record.outlier_columns:
        return f"{record.outlier_columns} outlier columns in floating point", again
    if record.activations == "int8":
        return "int8 activations", again
    return None


def check_half_scales(layer: LayerToWrite, weight: QuantizedTensor, format: str) -> None:
    with np.errstate(over="ignore", under="ignore"):
        half = weight.scales.astype(np.float16)
    if not np.isfinite(half).all() or ((half == 0) & (weight.scales != 0)).any():
        raise JobError(
            "E-QUANT", f"{layer.name}: {format} cannot hold scales outside float16", "use compressed-tensors"
        )


def shard_name(index: int, count: int) -> str:
    return SINGLE if count == 1 else f"model-{index + 1:05}-of-{count:05}.safetensors"
