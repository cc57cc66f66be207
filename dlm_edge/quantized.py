"""Quantized weights: integer codes in groups, or codebook entries in blocks, and what is recorded about them.

weight = (code - zero) * scale, codes 0 ... 2**bits - 1, groups along in_features. Packed lowest bits first, which is
the layout of ONNX Runtime's MatMulNBits; three bits live in a four-bit container.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

RECORD_NAME = "dlm_edge.json"
SCHEMA = 2

ZeroKind = Literal["symmetric", "integer", "float"]
CodeFormat = Literal["int", "nf4", "fp4"]
CODEBOOK_BLOCK = 64  # values that share one magnitude in nf4 and fp4


def container_bits(bits: int) -> int:
    return 4 if bits == 3 else bits


def middle_code(bits: int) -> int:
    """The zero of a symmetric grid."""
    return 1 << (bits - 1)


@dataclass(frozen=True, slots=True)
class OutlierColumns:
    """Input columns kept in floating point: `columns` int64 [n] ascending, `weights` float32 [out, n], all float16 values."""

    columns: NDArray[np.int64]
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """`packed` uint8 [out, groups, group_size * container / 8], `scales` float32 [out, groups].

    `zeros` [out, groups]: uint8 codes (an integer zero), float32 (a float zero), or None for `middle_code(bits)`.
    `order` int64 [in]: packed column j holds column order[j] of the weight; None when they agree.
    `outliers`: columns that are added on top; their own codes stand for zero.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    bits: int
    zeros: NDArray[np.uint8] | NDArray[np.float32] | None = None
    order: NDArray[np.int64] | None = None
    outliers: OutlierColumns | None = None

    @property
    def group_size(self) -> int:
        return int(self.packed.shape[2]) * 8 // container_bits(self.bits)

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0], self.packed.shape[1] * self.group_size

    @property
    def zero_kind(self) -> ZeroKind:
        if self.zeros is None:
            return "symmetric"
        return "integer" if self.zeros.dtype == np.uint8 else "float"


@dataclass(frozen=True, slots=True)
class CodebookTensor:
    """bitsandbytes' 4-bit forms: `packed` uint8 [out * in / 2], high nibble first over the flattened weight;
    `magnitudes` float32 [out * in / 64], one for each block; `shape` (out, in)."""

    packed: NDArray[np.uint8]
    magnitudes: NDArray[np.float32]
    shape: tuple[int, int]
    format: Literal["nf4", "fp4"]

    @property
    def bits(self) -> int:
        return 4


PackedWeight = QuantizedTensor | CodebookTensor


def pack(
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    bits: int,
    *,
    zeros: NDArray[np.uint8] | NDArray[np.float32] | None = None,
    order: NDArray[np.int64] | None = None,
    outliers: OutlierColumns | None = None,
) -> QuantizedTensor:
    """Pack unsigned `codes` [out, in] in the groups of `scales` [out, groups]; all else as in QuantizedTensor."""
    rows, groups = scales.shape
    packed = pack_codes(codes.reshape(rows, groups, -1), container_bits(bits))
    return QuantizedTensor(packed, scales.astype(np.float32), bits, zeros, order, outliers)


def pack_codes(codes: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """The last axis of `codes` in fields of `width` bits (1, 2, 4 or 8), lowest first; it is filled up to whole bytes."""
    per_byte = 8 // width
    missing = -codes.shape[-1] % per_byte
    if missing:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], missing), np.uint8)], -1)
    split = codes.reshape(*codes.shape[:-1], -1, per_byte)
    packed = np.zeros(split.shape[:-1], np.uint8)
    for i in range(per_byte):
        packed |= split[..., i] << np.uint8(i * width)
    return packed


def unpack_codes(packed: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """The inverse of `pack_codes`; filling fields are not removed."""
    shifts = np.arange(8 // width, dtype=np.uint8) * np.uint8(width)
    fields = (packed[..., None] >> shifts) & np.uint8(2**width - 1)
    return fields.reshape(*packed.shape[:-1], -1)


def unpack(tensor: QuantizedTensor) -> NDArray[np.uint8]:
    """Codes [out, in], the inverse of `pack`."""
    return unpack_codes(tensor.packed, container_bits(tensor.bits)).reshape(tensor.shape)


def dequantize(tensor: PackedWeight) -> NDArray[np.float32]:
    """Weights [out, in] in float32."""
    if isinstance(tensor, CodebookTensor):
        return dequantize_codebook(tensor)
    weights = unpack(tensor).reshape(*tensor.scales.shape, -1).astype(np.float32)
    weights -= np.float32(middle_code(tensor.bits)) if tensor.zeros is None else tensor.zeros[..., None]
    weights *= tensor.scales[..., None]
    weights = weights.reshape(tensor.shape)
    if tensor.order is not None:
        natural = np.empty_like(weights)
        natural[:, tensor.order] = weights
        weights = natural
    if tensor.outliers is not None:
        weights[:, tensor.outliers.columns] += tensor.outliers.weights
    return weights


# Both tables are those of bitsandbytes (QLoRA, arXiv 2305.14314, appendix E; FP4 is 1-2-1 with a half step below 1/12).
CODEBOOKS: dict[str, NDArray[np.float32]] = {
    "nf4": np.array(
        [
            -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
            -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
            0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
        ],
        np.float32,
    ),
    "fp4": np.array(
        [
            0.0, 0.005208333333333333, 0.6666666666666666, 1.0, 0.3333333333333333, 0.5, 0.16666666666666666, 0.25,
            0.0, -0.005208333333333333, -0.6666666666666666, -1.0, -0.3333333333333333, -0.5, -0.16666666666666666, -0.25,
        ],
        np.float32,
    ),
}  # fmt: skip


def dequantize_codebook(tensor: CodebookTensor) -> NDArray[np.float32]:
    low_first = unpack_codes(tensor.packed, 4).reshape(-1, 2)
    values = CODEBOOKS[tensor.format][low_first[:, ::-1].reshape(-1)]
    count = values.size
    scaled: NDArray[np.float32] = values * np.repeat(tensor.magnitudes, CODEBOOK_BLOCK)[:count]
    return scaled.reshape(tensor.shape)


class LayerRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What was done to one weight; `name` is the checkpoint's own tensor name. No times: equal jobs write equal bytes."""

    name: str
    bits: int
    group_size: int  # in_features for one scale per output channel
    method: str
    format: CodeFormat = "int"
    zero: ZeroKind = "symmetric"
    # int8: rounded per token before the product; float: a kernel may round them in blocks; exact: not even so
    activations: Literal["float", "int8", "exact"] = "float"
    outlier_columns: int = 0
    reordered: bool = False
    error: float | None = None  # ||(W - W') X||^2 / ||W X||^2 on the calibration states
    rtn_error: float | None = None
    tokens: int | None = None  # calibration tokens that the statistics saw
    effective_rank: float | None = None  # of the inputs' second moment, at most in_features
    input_peak: float | None = None  # largest |x| of the strongest input channel over that of the median one
    damping: float | None = None
    treatment: list[str] = []  # done about outliers: smooth, scale, split, rotate, more bits, float or none, with (why)
    notes: list[str] = []


class QuantizationRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The content of dlm_edge.json in a quantized checkpoint."""

    schema: int = SCHEMA
    method: str
    bits: float  # asked for: of every layer, or their mean where layers differ
    group_size: int
    seed: int
    recipe: dict[str, Any] = {}  # every setting in full
    calibration: dict[str, Any]
    source: dict[str, Any]  # name, size and sha256 of every weight file of the source
    tool_version: str
    layers: list[LayerRecord]
    skipped: list[str] = []
    fallbacks: list[str] = []
    quality: list[dict[str, Any]] = []  # masked NLL on held-out states before and after, by share of hidden tokens
    rotation: dict[str, Any] = {}  # of a rotated model: how much that changed it in full precision, and where most
