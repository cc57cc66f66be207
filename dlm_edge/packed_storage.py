"""How a packed weight lies in a safetensors file: one tensor per part, named after the weight.

model.layers.0.mlp.up_proj.weight_packed   U8   codes; three bits as a plane of two and a plane of one
                                ..._scale    F16  [out, groups] (F32 where float16 is too coarse)
                                ..._zero     U8   integer zeros, packed like codes; or F16/F32 float zeros
                                ..._order    I64  [in]
                                ..._outlier_columns  I64  [n],  ..._outliers  F16  [out, n]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.quantized import (
    CODEBOOK_BLOCK,
    CodebookTensor,
    LayerRecord,
    OutlierColumns,
    PackedWeight,
    QuantizedTensor,
    container_bits,
    pack_codes,
    unpack_codes,
)

CODES, SCALES, ZEROS, ORDER = "_packed", "_scale", "_zero", "_order"
OUTLIER_COLUMNS, OUTLIERS, MAGNITUDES = "_outlier_columns", "_outliers", "_magnitude"
SUFFIXES = (CODES, SCALES, ZEROS, ORDER, OUTLIER_COLUMNS, OUTLIERS, MAGNITUDES)
BY_ROW = (CODES, SCALES, ZEROS, OUTLIERS, MAGNITUDES)  # parts whose first dimension follows the rows of the weight
FLOATS = ("F16", "F32")

# suffix of a part -> its array, as it is stored
Read = Callable[[str], NDArray[Any]]


def part_shapes(layer: LayerRecord, shape: tuple[int, int]) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Suffix -> (accepted types, shape) of every part that a weight [out, in] recorded like this has."""
    rows, columns = shape
    if layer.format != "int":
        return {
            CODES: (("U8",), (rows, columns // 2)),
            MAGNITUDES: (("F32",), (rows, columns // CODEBOOK_BLOCK)),
        }
    groups, width = columns // layer.group_size, container_bits(layer.bits)
    parts: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        CODES: (("U8",), (rows, groups, layer.group_size * layer.bits // 8)),
        SCALES: (FLOATS, (rows, groups)),
    }
    if layer.zero == "integer":
        parts[ZEROS] = (("U8",), (rows, -(-groups * width // 8)))
    elif layer.zero == "float":
        parts[ZEROS] = (FLOATS, (rows, groups))
    if layer.reordered:
        parts[ORDER] = (("I64",), (columns,))
    if layer.outlier_columns:
        parts[OUTLIER_COLUMNS] = (("I64",), (layer.outlier_columns,))
        parts[OUTLIERS] = (FLOATS, (rows, layer.outlier_columns))
    return parts


def to_parts(tensor: PackedWeight) -> dict[str, NDArray[Any]]:
    """Suffix -> array to be stored; its dtype is the stored type."""
    if isinstance(tensor, CodebookTensor):
        rows = tensor.shape[0]
        return {CODES: tensor.packed.reshape(rows, -1), MAGNITUDES: tensor.magnitudes.reshape(rows, -1)}
    parts: dict[str, NDArray[Any]] = {
        CODES: to_planes(tensor.packed) if tensor.bits == 3 else tensor.packed,
        SCALES: narrowest(tensor.scales),
    }
    if tensor.zeros is not None:
        integer = tensor.zeros.dtype == np.uint8
        zeros: NDArray[Any] = tensor.zeros
        parts[ZEROS] = pack_codes(zeros, container_bits(tensor.bits)) if integer else narrowest(zeros)
    if tensor.order is not None:
        parts[ORDER] = tensor.order
    if tensor.outliers is not None:
        parts[OUTLIER_COLUMNS] = tensor.outliers.columns
        parts[OUTLIERS] = narrowest(tensor.outliers.weights)
    return parts


def from_parts(layer: LayerRecord, columns: int, read: Read) -> PackedWeight:
    """The weight, or as many of its rows as `read` gives of every part in `BY_ROW`."""
    codes = read(CODES)
    if layer.format != "int":
        shape = (len(codes), columns)
        return CodebookTensor(codes.reshape(-1), read(MAGNITUDES).reshape(-1), shape, layer.format)
    scales, zeros = read(SCALES).astype(np.float32, copy=False), None
    if layer.zero == "integer":
        zeros = unpack_codes(read(ZEROS), container_bits(layer.bits))[:, : scales.shape[1]]
    elif layer.zero == "float":
        zeros = read(ZEROS).astype(np.float32, copy=False)
    return QuantizedTensor(
        from_planes(codes) if layer.bits == 3 else codes,
        scales,
        layer.bits,
        zeros,
        read(ORDER) if layer.reordered else None,
        OutlierColumns(read(OUTLIER_COLUMNS), read(OUTLIERS).astype(np.float32, copy=False))
        if layer.outlier_columns
        else None,
    )


def narrowest(values: NDArray[np.float32]) -> NDArray[Any]:
    """In float16 where that holds every value exactly."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else values


def to_planes(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Three-bit codes from their four-bit container [..., size / 2] to [..., size * 3 / 8]: low two bits, then high one."""
    codes = unpack_codes(packed, 4)
    return np.concatenate([pack_codes(codes & np.uint8(3), 2), pack_codes(codes >> np.uint8(2), 1)], -1)


def from_planes(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    low_bytes = planes.shape[-1] * 2 // 3
    low, high = unpack_codes(planes[..., :low_bytes], 2), unpack_codes(planes[..., low_bytes:], 1)
    return pack_codes(low | (high << np.uint8(2)), 4)
