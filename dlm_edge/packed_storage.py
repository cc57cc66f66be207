"""How a packed weight lies in a safetensors file: one tensor per part, named after the weight.

model.layers.0.mlp.up_proj.weight_packed   U8   codes; three bits as a plane of two and a plane of one
                                ..._scale    F16  [out, groups] (F32 where float16 is too coarse)
                                ..._zero     U8   integer zeros, row by row like codes; or F16/F32 float zeros
                                ..._order    I64  [in]
                                ..._outlier_columns  I64  [n],  ..._outliers  F16  [out, n]
"""

from __future__ import annotations

import math
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


# accepted types, and accepted shapes with the one that is written first
Part = tuple[tuple[str, ...], list[tuple[int, ...]]]


def part_shapes(layer: LayerRecord, shape: tuple[int, int]) -> dict[str, Part]:
    """Suffix -> types and shapes of every part that a weight [out, in] recorded like this has."""
    rows, columns = shape
    if layer.format != "int":
        return {
            CODES: (("U8",), [(rows, columns // 2)]),
            MAGNITUDES: (("F32",), [(rows, columns // CODEBOOK_BLOCK)]),
        }
    groups = columns // layer.group_size
    parts: dict[str, Part] = {
        CODES: (("U8",), [(rows, groups, layer.group_size * layer.bits // 8)]),
        SCALES: (FLOATS, [(rows, groups)]),
    }
    if layer.zero == "integer":
        widths = dict.fromkeys([zero_bytes(groups, layer.bits), container_bytes(groups, layer.bits)])
        parts[ZEROS] = (("U8",), [(rows, width) for width in widths])
    elif layer.zero == "float":
        parts[ZEROS] = (FLOATS, [(rows, groups)])
    if layer.reordered:
        parts[ORDER] = (("I64",), [(columns,)])
    if layer.outlier_columns:
        parts[OUTLIER_COLUMNS] = (("I64",), [(layer.outlier_columns,)])
        parts[OUTLIERS] = (FLOATS, [(rows, layer.outlier_columns)])
    return parts


def zero_bytes(groups: int, bits: int) -> int:
    """Of one row's integer zeros. Three bits lie in planes where these are shorter than the container: of less than
    seven groups they are not, as each plane is filled up to whole bytes."""
    planes = math.ceil(groups * 2 / 8) + math.ceil(groups / 8)
    return min(planes, container_bytes(groups, 3)) if bits == 3 else container_bytes(groups, bits)


def container_bytes(groups: int, bits: int) -> int:
    """Of one row's zeros in fields of 1, 2, 4 or 8 bits, as earlier versions wrote those of three bits too."""
    return math.ceil(groups * container_bits(bits) / 8)


def pack_zeros(zeros: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Integer zeros [out, groups] as they are stored, [out, zero_bytes]."""
    groups = zeros.shape[1]
    in_planes = zero_bytes(groups, bits) < container_bytes(groups, bits)
    return planes_of(zeros) if in_planes else pack_codes(zeros, container_bits(bits))


def unpack_zeros(stored: NDArray[np.uint8], groups: int, bits: int) -> NDArray[np.uint8]:
    """The inverse; how they are stored is told by their width."""
    in_planes = stored.shape[1] < container_bytes(groups, bits)
    return (codes_of(stored) if in_planes else unpack_codes(stored, container_bits(bits)))[:, :groups]


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
        zeros: NDArray[Any] = tensor.zeros
        parts[ZEROS] = pack_zeros(zeros, tensor.bits) if zeros.dtype == np.uint8 else narrowest(zeros)
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
        zeros = unpack_zeros(read(ZEROS), scales.shape[1], layer.bits)
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
    """Three-bit codes from their four-bit container [..., size / 2] to [..., size * 3 / 8]."""
    return planes_of(unpack_codes(packed, 4))


def from_planes(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pack_codes(codes_of(planes), 4)


def planes_of(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Three-bit codes [..., n] in two planes, the low two bits and then the high one, each filled up to whole bytes."""
    return np.concatenate([pack_codes(codes & np.uint8(3), 2), pack_codes(codes >> np.uint8(2), 1)], -1)


def codes_of(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse; of the filling as many as fill the low plane are left."""
    low_bytes = planes.shape[-1] * 2 // 3  # the high plane has half as many, rounded up
    low, high = unpack_codes(planes[..., :low_bytes], 2), unpack_codes(planes[..., low_bytes:], 1)
    return low | (high[..., : low.shape[-1]] << np.uint8(2))
