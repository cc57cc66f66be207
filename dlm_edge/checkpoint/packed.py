"""Packed weights in a checkpoint: what dlm_edge.json says about them, and whether the stored tensors agree."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from dlm_edge.checkpoint.floats import read_bytes, read_rows
from dlm_edge.checkpoint.safetensors_header import TensorEntry
from dlm_edge.checkpoint.strict_json import read_json_object
from dlm_edge.errors import InputFileError
from dlm_edge.quantized import (
    PACKED_SUFFIX,
    RECORD_NAME,
    SCALE_SUFFIX,
    LayerRecord,
    QuantizationRecord,
    QuantizedTensor,
    container_bits,
)

BITS = (2, 3, 4, 8)
MAX_RECORD_BYTES = 64 << 20
AGAIN = "quantize the checkpoint again"


def read_record(folder: Path) -> QuantizationRecord | None:
    """The content of dlm_edge.json; None when there is none. Raises E-JSON or E-CONFIG."""
    path = folder / RECORD_NAME
    if not os.path.lexists(path):
        return None
    content = read_json_object(path, MAX_RECORD_BYTES)
    try:
        record = msgspec.convert(content, QuantizationRecord)
    except msgspec.ValidationError as error:
        raise InputFileError("E-CONFIG", f"{path}: {error}{_closest(str(error))}", AGAIN) from error
    if record.schema != 1:
        raise InputFileError("E-CONFIG", f"{path} has schema {record.schema}, this version reads 1", "update dlm-edge")
    names = [layer.name for layer in record.layers]
    if len(set(names)) != len(names):
        raise InputFileError("E-CONFIG", f"{path} lists a weight twice", AGAIN)
    return record


def check_packed(layer: LayerRecord, tensors: Mapping[str, TensorEntry], shape: tuple[int, ...], folder: Path) -> None:
    """The two tensors of a packed weight against its record and the shape [out, in] that the model needs."""
    name = layer.name
    if layer.bits not in BITS or layer.group_size < 1 or layer.group_size * container_bits(layer.bits) % 8:
        raise InputFileError(
            "E-CONFIG", f"{folder / RECORD_NAME}: {name} has {layer.bits} bits in groups of {layer.group_size}", AGAIN
        )
    if len(shape) != 2 or shape[1] % layer.group_size:
        raise InputFileError(
            "E-TENSOR", f"{folder}: {name} of shape {shape} does not divide into groups of {layer.group_size}", AGAIN
        )
    groups = shape[1] // layer.group_size
    wanted = {
        name + PACKED_SUFFIX: (("U8",), (shape[0], groups, layer.group_size * container_bits(layer.bits) // 8)),
        name + SCALE_SUFFIX: (("F16", "F32"), (shape[0], groups)),
    }
    for part, (dtypes, part_shape) in wanted.items():
        if part not in tensors:
            raise InputFileError("E-TENSOR", f"{folder}: {part} is missing, though {RECORD_NAME} lists {name}", AGAIN)
        found = tensors[part]
        if found.shape != part_shape:
            raise InputFileError("E-TENSOR", f"{folder}: {part} has shape {found.shape}, expected {part_shape}", AGAIN)
        if found.dtype not in dtypes:
            raise InputFileError(
                "E-ST-DTYPE", f"{folder}: {part} is {found.dtype}, expected {' or '.join(dtypes)}", AGAIN
            )


def read_packed(layer: LayerRecord, tensors: Mapping[str, TensorEntry], first: int, last: int) -> QuantizedTensor:
    packed = read_bytes(tensors[layer.name + PACKED_SUFFIX], first, last)
    scales = read_rows(tensors[layer.name + SCALE_SUFFIX], first, last)
    return QuantizedTensor(packed, scales.astype(np.float32, copy=False), layer.bits)


def _closest(message: str) -> str:
    unknown = re.search(r"unknown field `(\w+)`", message)
    known = {*QuantizationRecord.__struct_fields__, *LayerRecord.__struct_fields__}
    near = difflib.get_close_matches(unknown.group(1), known, n=1) if unknown else []
    return f" (did you mean {near[0]}?)" if near else ""
