"""Checkpoints that another tool quantized: their config and tensors, seen as packed layers and a record like ours."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dlm_edge.checkpoint.formats import READERS, Reader
from dlm_edge.checkpoint.formats.format import Part, Variant, layer_record
from dlm_edge.checkpoint.packed_layer import PackedLayer
from dlm_edge.checkpoint.safetensors_header import TensorEntry
from dlm_edge.errors import InputFileError
from dlm_edge.families.settings import Settings
from dlm_edge.quantized import QuantizationRecord

KEY = "quantization_config"
MAX_VARIANTS = 64  # every layer is held against each of them


def find_reader(config: Mapping[str, Any], folder: Path) -> tuple[Reader, tuple[Variant, ...]] | None:
    """How the weights are stored by config.json; None without quantization_config. Raises E-CONFIG."""
    found = config.get(KEY)
    if found is None:
        return None
    where = Settings(config, folder.name)
    if not isinstance(found, dict):
        raise where.wrong(KEY, found, "an object")
    method = found.get("quant_method")
    if not isinstance(method, str) or method not in READERS:
        raise where.wrong(f"{KEY}: quant_method", method, " or ".join(READERS))
    reader = READERS[method]
    variants = tuple(dict.fromkeys(reader.read_config(Settings(found, f"{folder.name}, {KEY}"))))
    if len(variants) > MAX_VARIANTS:
        raise where.wrong(KEY, f"{len(variants)} ways of storing weights", f"at most {MAX_VARIANTS}")
    return reader, variants


def find_layers(
    reader: Reader,
    variants: tuple[Variant, ...],
    tensors: Mapping[str, TensorEntry],
    shapes: Mapping[str, tuple[int, ...]],
    folder: Path,
) -> dict[str, PackedLayer]:
    """The packed weights among `shapes` (by tensor name). Raises E-TENSOR or E-ST-DTYPE for tensors that do not fit."""
    layers = {}
    for name, shape in shapes.items():
        if len(shape) == 2 and any(reader.parts(name, v, shape)[reader.marker].name in tensors for v in variants):
            layers[name] = find_layer(reader, variants, tensors, name, (shape[0], shape[1]), folder)
    return layers


def find_layer(
    reader: Reader,
    variants: tuple[Variant, ...],
    tensors: Mapping[str, TensorEntry],
    name: str,
    shape: tuple[int, int],
    folder: Path,
) -> PackedLayer:
    """The variant with the most parts whose tensors are all there decides; the shapes tell bits and groups."""
    if name in tensors and name not in {part.name for part in reader.parts(name, variants[0], shape).values()}:
        raise InputFileError("E-TENSOR", f"{folder}: {name} is there twice, packed and not", "remove one of the two")
    fitting, problems = [], []
    for variant in variants:
        parts = reader.parts(name, variant, shape)
        problem = next((p for p in (misfit(part, tensors) for part in parts.values()) if p), None)
        if problem is None:
            fitting.append((len(parts), variant))
        else:
            problems.append(problem)
    if not fitting:
        code, message = problems[0]
        raise InputFileError(code, f"{folder}: {message}", f"is {KEY} in config.json the right one?")
    most = max(count for count, _ in fitting)
    chosen = [variant for count, variant in fitting if count == most]
    records = [layer_record(name, variant, shape[1], reader.method) for variant in chosen]
    if any(record != records[0] for record in records):
        raise InputFileError(
            "E-CONFIG", f"{folder}: {name} fits several groups of {KEY}", "give each layer one setting in config.json"
        )
    entries = {
        key: tensors[part.name] for key, part in reader.parts(name, chosen[0], shape).items() if part.name in tensors
    }
    scales = entries.get("scales")
    return PackedLayer(
        records[0],
        shape,
        {entry.name: entry for entry in entries.values()},
        scales.dtype if scales else "F32",
        partial(reader.read, name, chosen[0], shape, entries),
        reader.row_step(shape[1]),
    )


def misfit(part: Part, tensors: Mapping[str, TensorEntry]) -> tuple[str, str] | None:
    """Code and message when the tensor of `part` is missing or not what it has to be."""
    found = tensors.get(part.name)
    if found is None:
        return None if part.optional else ("E-TENSOR", f"{part.name} is missing")
    if found.dtype not in part.dtypes:
        return "E-ST-DTYPE", f"{part.name} is {found.dtype}, expected {' or '.join(part.dtypes)}"
    if part.shape is not None and found.shape != part.shape:
        return "E-TENSOR", f"{part.name} has shape {found.shape}, expected {part.shape}"
    return None


def foreign_record(
    config: Mapping[str, Any], layers: Mapping[str, PackedLayer], plain: list[str]
) -> QuantizationRecord:
    """What inspection and export show of it; the config itself is the recipe."""
    settings = config[KEY]
    sizes = {name: layer.shape[0] * layer.shape[1] for name, layer in layers.items()}
    total = sum(sizes.values()) or 1
    groups = [layer.record.group_size for layer in layers.values()]
    return QuantizationRecord(
        method=f"{settings['quant_method']} (foreign)",
        bits=round(sum(layer.record.bits * sizes[name] for name, layer in layers.items()) / total, 2),
        group_size=max(set(groups), key=groups.count) if groups else 0,
        seed=0,
        recipe=dict(settings),
        calibration={},
        source={},
        tool_version="",
        layers=[layer.record for layer in layers.values()],
        skipped=plain,
    )
