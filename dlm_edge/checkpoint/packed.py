"""Packed weights in a checkpoint: what dlm_edge.json says about them, and whether the stored tensors agree."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dlm_edge.checkpoint.floats import read_bytes, read_rows
from dlm_edge.checkpoint.safetensors_header import TensorEntry
from dlm_edge.checkpoint.strict_json import read_json_object
from dlm_edge.errors import InputFileError
from dlm_edge.packed_storage import BY_ROW, CODES, ORDER, OUTLIER_COLUMNS, ZEROS, from_parts, part_shapes
from dlm_edge.quantized import (
    CODEBOOK_BLOCK,
    RECORD_NAME,
    SCHEMA,
    LayerRecord,
    PackedWeight,
    QuantizationRecord,
    QuantizedTensor,
    container_bits,
    middle_code,
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
    if record.schema != SCHEMA:
        message = f"{path} has schema {record.schema}, this version reads {SCHEMA}"
        raise InputFileError("E-CONFIG", message, "update dlm-edge" if record.schema > SCHEMA else AGAIN)
    names = [layer.name for layer in record.layers]
    if len(set(names)) != len(names):
        raise InputFileError("E-CONFIG", f"{path} lists a weight twice", AGAIN)
    return record


def check_packed(layer: LayerRecord, tensors: Mapping[str, TensorEntry], shape: tuple[int, ...], folder: Path) -> None:
    """Every part of a packed weight against its record and the shape [out, in] that the model needs."""
    name = layer.name
    possible = layer.bits in BITS and layer.group_size > 0 and layer.group_size % 8 == 0
    if not possible or (layer.format != "int" and (layer.bits, layer.group_size) != (4, CODEBOOK_BLOCK)):
        raise InputFileError(
            "E-CONFIG", f"{folder / RECORD_NAME}: {name} has {layer.bits} bits in groups of {layer.group_size}", AGAIN
        )
    plain = (layer.zero, layer.outlier_columns, layer.reordered) == ("symmetric", 0, False)
    # Outlier columns are left out of int8 activations, so their codes have to stand for zero; a float zero is no code.
    cut_short = layer.activations == "int8" and layer.outlier_columns and layer.zero == "float"
    if (layer.format != "int" and not plain) or cut_short:
        message = f"{folder / RECORD_NAME}: {name} has a combination of {', '.join(_kinds(layer))} that does not exist"
        raise InputFileError("E-CONFIG", message, AGAIN)
    if len(shape) != 2 or shape[1] % layer.group_size or not 0 <= layer.outlier_columns <= shape[1]:
        raise InputFileError(
            "E-TENSOR", f"{folder}: {name} of shape {shape} does not divide into groups of {layer.group_size}", AGAIN
        )
    for suffix, (dtypes, shapes) in part_shapes(layer, (shape[0], shape[1])).items():
        part = name + suffix
        if part not in tensors:
            raise InputFileError("E-TENSOR", f"{folder}: {part} is missing, though {RECORD_NAME} lists {name}", AGAIN)
        found = tensors[part]
        if found.shape not in shapes:
            raise InputFileError("E-TENSOR", f"{folder}: {part} has shape {found.shape}, expected {shapes[0]}", AGAIN)
        if found.dtype not in dtypes:
            raise InputFileError(
                "E-ST-DTYPE", f"{folder}: {part} is {found.dtype}, expected {' or '.join(dtypes)}", AGAIN
            )


def _kinds(layer: LayerRecord) -> list[str]:
    kinds = [f"format {layer.format}", f"{layer.zero} zero", f"{layer.activations} activations"]
    kinds += [f"{layer.outlier_columns} outlier columns"] if layer.outlier_columns else []
    return [*kinds, "a column order"] if layer.reordered else kinds


def read_packed(
    layer: LayerRecord, tensors: Mapping[str, TensorEntry], shape: tuple[int, ...], first: int, last: int
) -> PackedWeight:
    """Rows [first, last) of the weight. Raises E-NAN for scales, E-TENSOR for column numbers that cannot be."""

    def read(suffix: str) -> NDArray[Any]:
        entry = tensors[layer.name + suffix]
        start, stop = (first, last) if suffix in BY_ROW else (0, entry.shape[0])
        if entry.dtype in ("F16", "F32"):
            return read_rows(entry, start, stop)
        if entry.dtype == "I64":
            return np.frombuffer(entry.file.read(entry.begin, entry.end - entry.begin), "<i8").astype(np.int64)
        return read_bytes(entry, start, stop)

    weight = from_parts(layer, shape[1], read)
    if isinstance(weight, QuantizedTensor):
        _check_columns(layer.name, weight, shape[1], tensors[layer.name + CODES])
    return weight


def _check_columns(name: str, weight: QuantizedTensor, width: int, entry: TensorEntry) -> None:
    """Indices come from a file: they must be columns, and `order` every one of them once."""
    path = entry.file.path
    if weight.order is not None and not np.array_equal(np.sort(weight.order), np.arange(width)):
        raise InputFileError("E-TENSOR", f"{path}: {name}{ORDER} is not an order of {width} columns", AGAIN)
    if weight.outliers is not None:
        columns = weight.outliers.columns
        if columns[0] < 0 or columns[-1] >= width or (np.diff(columns) <= 0).any():
            raise InputFileError("E-TENSOR", f"{path}: {name}{OUTLIER_COLUMNS} does not ascend within {width}", AGAIN)
        if not _stand_for_zero(weight, columns):
            raise InputFileError("E-TENSOR", f"{path}: {name}{CODES} has codes in the outlier columns", AGAIN)
    if weight.zeros is not None and weight.zero_kind == "integer" and (weight.zeros >= 2**weight.bits).any():
        raise InputFileError("E-TENSOR", f"{path}: {name}{ZEROS} has zeros of more than {weight.bits} bits", AGAIN)


def _stand_for_zero(weight: QuantizedTensor, columns: NDArray[np.int64]) -> bool:
    """Whether the codes of these columns are their zero, as far as a zero is a code."""
    if weight.zero_kind == "float":
        return True
    places = columns if weight.order is None else np.argsort(weight.order)[columns]
    width = container_bits(weight.bits)
    packed = weight.packed.reshape(len(weight.packed), -1)[:, places * width // 8]
    codes = packed >> (places * width % 8).astype(np.uint8) & np.uint8(2**width - 1)
    zeros = middle_code(weight.bits) if weight.zeros is None else weight.zeros[:, places // weight.group_size]
    return bool((codes == zeros).all())


def _closest(message: str) -> str:
    unknown = re.search(r"unknown field `(\w+)`", message)
    known = {*QuantizationRecord.__struct_fields__, *LayerRecord.__struct_fields__}
    near = difflib.get_close_matches(unknown.group(1), known, n=1) if unknown else []
    return f" (did you mean {near[0]}?)" if near else ""
