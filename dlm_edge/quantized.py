"""Group-wise quantized weights: how they are packed, and what is recorded about them.

Symmetric codes with the zero at 2**(bits - 1): weight = (code - zero) * scale. Packed along in_features,
lowest bits first, which is the layout of ONNX Runtime's MatMulNBits. Three bits live in a four-bit container.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

RECORD_NAME = "dlm_edge.json"
PACKED_SUFFIX, SCALE_SUFFIX = "_packed", "_scale"  # model.layers.0.mlp.up_proj.weight -> ...weight_packed


def container_bits(bits: int) -> int:
    return 4 if bits == 3 else bits


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """`packed` uint8 [out, groups, group_size * container / 8], `scales` float32 [out, groups].

    `bits` is what the codes use, `container_bits(bits)` what they are stored in; both share the container's zero.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    bits: int

    @property
    def group_size(self) -> int:
        return int(self.packed.shape[2]) * 8 // container_bits(self.bits)

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0], self.packed.shape[1] * self.group_size


def pack(codes: NDArray[np.uint8], scales: NDArray[np.float32], bits: int) -> QuantizedTensor:
    """Pack `codes` [out, in], already around the container's zero, in groups given by `scales` [out, groups]."""
    per_byte = 8 // container_bits(bits)
    rows, groups = scales.shape
    split = codes.reshape(rows, groups, -1, per_byte)
    packed = np.zeros(split.shape[:3], np.uint8)
    for i in range(per_byte):
        packed |= split[..., i] << np.uint8(i * container_bits(bits))
    return QuantizedTensor(packed, scales.astype(np.float32), bits)


def unpack(tensor: QuantizedTensor) -> NDArray[np.uint8]:
    """Codes [out, in], the inverse of `pack`."""
    width = container_bits(tensor.bits)
    per_byte = 8 // width
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(width)
    codes = (tensor.packed[..., None] >> shifts) & np.uint8(2**width - 1)
    return codes.reshape(tensor.shape)


def dequantize(tensor: QuantizedTensor) -> NDArray[np.float32]:
    """Weights [out, in] in float32."""
    zero = 2 ** (container_bits(tensor.bits) - 1)
    groups = unpack(tensor).reshape(*tensor.scales.shape, -1).astype(np.float32) - zero
    weights: NDArray[np.float32] = (groups * tensor.scales[..., None]).reshape(tensor.shape)
    return weights


class LayerRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What was done to one weight; `name` is the checkpoint's own tensor name. No times: equal jobs write equal bytes."""

    name: str
    bits: int
    group_size: int
    method: str
    error: float | None = None  # ||(W - W') X||^2 / ||W X||^2 on the calibration states
    rtn_error: float | None = None
    notes: list[str] = []


class QuantizationRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The content of dlm_edge.json in a quantized checkpoint."""

    schema: int = 1
    method: str
    bits: int
    group_size: int
    seed: int
    calibration: dict[str, Any]
    source: dict[str, Any]  # name, size and sha256 of every weight file of the source
    tool_version: str
    layers: list[LayerRecord]
    skipped: list[str] = []
    fallbacks: list[str] = []
