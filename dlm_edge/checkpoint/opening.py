"""Opening a checkpoint folder: everything is checked that can be checked without reading the weights."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dlm_edge.checkpoint.checkpoint import Checkpoint
from dlm_edge.checkpoint.floats import FLOATS, same_bytes
from dlm_edge.checkpoint.foreign import KEY, find_layers, find_reader, foreign_record
from dlm_edge.checkpoint.packed import check_packed, read_packed, read_record
from dlm_edge.checkpoint.packed_layer import PackedLayer
from dlm_edge.checkpoint.safetensors_header import TensorEntry
from dlm_edge.checkpoint.shards import read_tensors
from dlm_edge.checkpoint.strict_json import read_json_object
from dlm_edge.checkpoint.tokenizer_ids import read_tokenizer_ids
from dlm_edge.errors import InputFileError
from dlm_edge.families import find_family
from dlm_edge.families.family import Family
from dlm_edge.families.roles import role_shapes
from dlm_edge.families.settings import Settings
from dlm_edge.families.spec import ModelSpec
from dlm_edge.packed_storage import SCALES, part_shapes
from dlm_edge.quantized import RECORD_NAME, QuantizationRecord

REFERENCES = ("reference", "reference-full")
BUFFER = re.compile(r".*rotary_emb\.inv_freq")  # follows from the config; some checkpoints store it
REMOTE_CODE = ("auto_map", "trust_remote_code", "custom_pipeline")

log = logging.getLogger("dlm_edge")


def open_checkpoint(path: Path | str, *, need_tokenizer: bool = False) -> Checkpoint:
    """Open and check a folder, or one of the shipped models `reference` and `reference-full`.

    Config, tokenizer ids, weight headers and shapes are checked; nothing from the folder is executed.
    Every refusal is an InputFileError with a code of `dlm_edge.errors.CODES`.
    """
    folder = _folder(path)
    config = _read_config(folder)
    family = find_family(config, folder.name)
    foreign = find_reader(config, folder)
    own = {key: value for key, value in config.items() if key != KEY}
    spec = _read_spec(folder, own, family, need_tokenizer)
    record = read_record(folder)
    if foreign and record:
        raise InputFileError(
            "E-CONFIG", f"{folder} has both {RECORD_NAME} and a {KEY}", "remove the one that is not about its weights"
        )
    tensors = read_tensors(folder)
    shapes = role_shapes(spec)
    names = {family.tensor_name(role): shape for role, shape in shapes.items()}
    if foreign:
        packed = find_layers(*foreign, tensors, names, folder)
        plain = [name for name in _linears(shapes, family) if name not in packed]
        record = foreign_record(config, packed, plain)
    else:
        packed = _own_layers(folder, record, tensors, names)
    _check_tensors(folder, tensors, names, packed)
    _check_unexpected(folder, spec, family, tensors, names, packed)
    return Checkpoint(folder, spec, config, record, family, shapes, tensors, packed)


def _linears(shapes: Mapping[str, tuple[int, ...]], family: Family) -> list[str]:
    """Tensor names of the linear weights inside layers."""
    return [family.tensor_name(r) for r, shape in shapes.items() if r.startswith("layers.") and len(shape) == 2]


def _own_layers(
    folder: Path,
    record: QuantizationRecord | None,
    tensors: Mapping[str, TensorEntry],
    names: Mapping[str, tuple[int, ...]],
) -> dict[str, PackedLayer]:
    """The weights that dlm_edge.json lists. Raises E-TENSOR, E-ST-DTYPE or E-CONFIG."""
    listed = {layer.name: layer for layer in record.layers} if record else {}
    strangers = sorted(set(listed) - set(names))
    if strangers:
        raise InputFileError(
            "E-TENSOR", f"{folder}: {RECORD_NAME} lists {_some(strangers)}, not a weight of this model"
        )
    packed = {}
    for name, layer in listed.items():
        check_packed(layer, tensors, names[name], folder)
        shape = (names[name][0], names[name][1])
        entries = {name + suffix: tensors[name + suffix] for suffix in part_shapes(layer, shape)}
        scales = entries.get(name + SCALES)
        read = partial(read_packed, layer, tensors, shape)
        packed[name] = PackedLayer(layer, shape, entries, scales.dtype if scales else "F32", read)
    return packed


def _folder(path: Path | str) -> Path:
    if str(path) in REFERENCES:
        shipped = Path(__file__).resolve().parent.parent / "reference_models" / str(path)
        if not shipped.is_dir():
            raise InputFileError("E-CONFIG", f"the model {path} is not part of this installation", "reinstall dlm-edge")
        return shipped
    return Path(path)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not os.path.isdir(folder):
        found = "is no folder" if os.path.lexists(folder) else "does not exist"
        raise InputFileError("E-CONFIG", f"{folder} {found}", "give the folder of a downloaded checkpoint")
    if not os.path.lexists(path):
        raise InputFileError("E-CONFIG", f"{folder} holds no config.json", "give the folder of a downloaded checkpoint")
    config = read_json_object(path)
    code = [key for key in REMOTE_CODE if _mentions(config, key)]
    if code:
        log.warning("%s: %s in config.json is ignored, no code of the folder is run", folder, " and ".join(code))
    return config


def _mentions(value: Any, key: str) -> bool:
    if isinstance(value, dict):
        return key in value or any(_mentions(inner, key) for inner in value.values())
    return isinstance(value, list) and any(_mentions(inner, key) for inner in value)


def _read_spec(folder: Path, config: dict[str, Any], family: Family, need_tokenizer: bool) -> ModelSpec:
    ids = read_tokenizer_ids(folder)
    if ids is None and need_tokenizer:
        raise InputFileError(
            "E-TOK", f"{folder} holds no tokenizer.json", "fetch it, or convert the tokenizer you have"
        )
    beside = folder / "generation_config.json"
    settings = Settings(
        config,
        folder.name,
        beside=read_json_object(beside) if os.path.lexists(beside) else {},
        tokenizer_mask_id=ids.mask_id if ids else None,
        produced_rows=ids.highest + 1 if ids else None,
    )
    spec = family.read_spec(settings)
    if ids and ids.highest >= spec.embedding_rows:
        raise InputFileError(
            "E-TOK",
            f"{folder}: the tokenizer has id {ids.highest}, the embedding {spec.embedding_rows} rows",
            "the tokenizer belongs to another model",
        )
    return spec


def _check_tensors(
    folder: Path,
    tensors: Mapping[str, TensorEntry],
    names: Mapping[str, tuple[int, ...]],
    packed: Mapping[str, PackedLayer],
) -> None:
    missing = [name for name in names if name not in tensors and name not in packed]
    if missing:
        raise InputFileError(
            "E-TENSOR",
            f"{folder}: {len(missing)} weights are missing: {_some(missing)}",
            "is config.json the right one?",
        )
    for name, shape in names.items():
        if name in packed:
            continue
        found = tensors[name]
        if found.dtype not in FLOATS:
            raise InputFileError(
                "E-ST-DTYPE",
                f"{folder}: {name} is {found.dtype}; supported: {', '.join(FLOATS)}",
                "convert the weights",
            )
        if found.shape != shape:
            raise InputFileError(
                "E-TENSOR",
                f"{folder}: {name} has shape {found.shape}, expected {shape}",
                "is config.json the right one?",
            )


def _check_unexpected(
    folder: Path,
    spec: ModelSpec,
    family: Family,
    tensors: Mapping[str, TensorEntry],
    names: Mapping[str, tuple[int, ...]],
    packed: Mapping[str, PackedLayer],
) -> None:
    """Refuse tensors without a role. Rotary tables are tolerated, and a stored head that equals the tied embedding."""
    known = {name for name in names if name not in packed}
    for layer in packed.values():
        known |= set(layer.entries)
    others = sorted(name for name in tensors if name not in known and not BUFFER.fullmatch(name))
    embed, head = family.tensor_name("embed.weight"), family.tensor_name("head.weight")
    if spec.tied_head and head in others and embed in tensors:
        if not same_bytes(tensors[embed], tensors[head]):
            raise InputFileError(
                "E-TENSOR",
                f"{folder}: {head} differs from {embed}, though config.json says that they are tied",
                "correct tie_word_embeddings (weight_tying) in config.json",
            )
        others.remove(head)
    if others:
        raise InputFileError(
            "E-TENSOR", f"{folder}: {len(others)} unexpected tensors: {_some(others)}", "is config.json the right one?"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
