"""One safetensors file, written in pieces: the tensors of a finished layer, packed ones and untouched ones."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open

from dlm_edge import files
from dlm_edge.quantized import PACKED_SUFFIX, SCALE_SUFFIX, QuantizedTensor

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """`pieces` together are the tensor's bytes; they are asked for once, when the file is written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Iterable[bytes]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def packed_tensors(name: str, tensor: QuantizedTensor) -> list[StoredTensor]:
    """Codes, and scales in float16 where that is exact (grid.round_scales decided it) or in float32."""
    half = tensor.scales.astype("<f2")
    exact = bool((half.astype(np.float32) == tensor.scales).all())
    scales = half if exact else tensor.scales.astype("<f4")
    return [
        StoredTensor(name + PACKED_SUFFIX, "U8", tensor.packed.shape, [tensor.packed.tobytes()]),
        StoredTensor(name + SCALE_SUFFIX, "F16" if exact else "F32", scales.shape, [scales.tobytes()]),
    ]


def write_layer_file(path: Path, tensors: list[StoredTensor]) -> None:
    """Tensors in name order, so that equal tensors make equal files."""
    ordered, at = sorted(tensors, key=lambda t: t.name), 0
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for tensor in ordered:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.size_bytes],
        }
        at += tensor.size_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with files.replacing(path) as file:
        files.calls.write(file, len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            for piece in tensor.pieces:
                files.calls.write(file, piece)


def read_packed_tensors(path: Path, names: list[str], bits: int) -> dict[str, QuantizedTensor]:
    """What `packed_tensors` made of `names`, from a file whose hash the journal has confirmed."""
    with safe_open(path, "numpy") as file:
        return {
            name: QuantizedTensor(
                file.get_tensor(name + PACKED_SUFFIX), file.get_tensor(name + SCALE_SUFFIX).astype(np.float32), bits
            )
            for name in names
        }
