"""`convert`: a quantized checkpoint in the layout of another tool, so that vLLM, SGLang or LMDeploy can serve it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

import dlm_edge
from dlm_edge import files
from dlm_edge.checkpoint import Checkpoint, open_checkpoint
from dlm_edge.checkpoint.foreign import KEY
from dlm_edge.checkpoint.formats import WRITERS, Writer
from dlm_edge.checkpoint.formats.format import LayerToWrite
from dlm_edge.checkpoint.formats.imatrix import gguf_name, read_imatrix
from dlm_edge.checkpoint.safetensors_writer import StoredTensor, write_safetensors
from dlm_edge.checkpoint.shards import INDEX, PICKLED, SINGLE
from dlm_edge.errors import InputFileError, JobError, ResourceError, UsageProblem
from dlm_edge.journal import CONVERSION_NAME, JOURNAL, WorkFolder, free_bytes
from dlm_edge.quantized import RECORD_NAME, LayerRecord, QuantizedTensor

IMATRIX = "imatrix"
IMATRIX_NAME = "imatrix.dat"  # what `quantize --imatrix` leaves in the checkpoint
FORMATS = (*WRITERS, IMATRIX)
SHARD_BYTES = 4 << 30
ROWS = 4096  # of an embedding, dequantized at a time
NOT_COPIED = {RECORD_NAME, CONVERSION_NAME, INDEX, JOURNAL, IMATRIX_NAME, "config.json"}


class ConversionReport(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of `dlm-edge convert --json`."""

    output: str
    format: str
    size_bytes: int
    layers: int
    notes: list[str]
    seconds: float


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    format: str,
    restart: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ConversionReport:
    """Write the folder `out` in `format`: gptq, gptq_v2, awq or compressed-tensors; or the file `out`: imatrix.

    Codes, scales and zeros stay what they are; what the format cannot hold is refused with E-QUANT before anything is
    written. Raises E-EXISTS, E-IO and whatever opening the checkpoint raises. `restart` replaces an earlier output.
    """
    started, out = time.perf_counter(), Path(out)
    if format not in FORMATS:
        raise UsageProblem("E-USAGE", f"format {format!r} is not known", f"known: {', '.join(FORMATS)}")
    source, say = open_checkpoint(checkpoint), progress or (lambda _: None)
    if out.resolve() == source.path.resolve():
        raise UsageProblem("E-USAGE", f"{out} is the checkpoint itself", "choose another folder with -o")
    if format == IMATRIX:
        n_layers, notes = copy_imatrix(source, out, restart), []
    else:
        job = Conversion(source, format, say)
        check_space(job, out)
        fingerprint = {"job": "convert", "source": str(source.path.resolve()), "version": dlm_edge.__version__}
        with WorkFolder.open(out, fingerprint, resume=False, restart=restart, discard_unfinished=True) as work:
            job.write(work.path)
            source.check_unchanged()
            work.finish()
        n_layers, notes = len(job.layers), job.notes
    size = out.stat().st_size if out.is_file() else sum(f.stat().st_size for f in out.iterdir())
    return ConversionReport(
        output=str(out),
        format=format,
        size_bytes=size,
        layers=n_layers,
        notes=notes,
        seconds=time.perf_counter() - started,
    )


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
        return "float zeros", again
    if record.outlier_columns:
        return f"{record.outlier_columns} outlier columns in floating point", again
    if record.activations != "float":
        return f"{record.activations} activations", again
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


def check_space(job: Conversion, out: Path) -> None:
    needed = sum(t.size_bytes for role in job.source.roles() for t in job.stored(role)) + (16 << 20)
    free = free_bytes(out.absolute().parent)
    if free < needed:
        message = f"{out} needs {needed >> 20} MiB, {free >> 20} MiB are free"
        raise ResourceError("E-IO", message, "free some space or choose another folder")


def copy_imatrix(source: Checkpoint, out: Path, restart: bool) -> int:
    """Check the imatrix that quantizing left in the checkpoint, and write it to the file `out`; returns its entries."""
    path = source.path / IMATRIX_NAME
    if not path.is_file():
        message = f"{source.name} holds no {IMATRIX_NAME}"
        raise JobError("E-QUANT", message, "quantize with a calibrated method and --imatrix")
    found = read_imatrix(path)
    layers = [role for role in source.roles() if role.startswith("layers.") and len(source.shape(role)) == 2]
    widths = {gguf_name(role): source.shape(role)[1] for role in layers}
    strangers = [name for name, squares in found.mean_squares.items() if widths.get(name) != len(squares)]
    if strangers:
        raise InputFileError(
            "E-TENSOR", f"{path}: {strangers[0]} is no linear layer of this model", "quantize it again"
        )
    if out.exists():
        if not restart:
            hint = "choose another file with -o, or replace it with --restart"
            raise UsageProblem("E-EXISTS", f"{out} exists already", hint)
        read_imatrix(out)  # only an imatrix is ever replaced
    files.make_folder(out.parent)
    files.write_file(out, path.read_bytes())
    return len(found.mean_squares)
