"""The file of a finished layer: packed weights, what was left as it was, and reading both back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import safe_open
from torch import Tensor

from dlm_edge.checkpoint.safetensors_writer import StoredTensor, write_safetensors
from dlm_edge.packed_storage import from_parts, to_parts
from dlm_edge.quantized import LayerRecord, PackedWeight

__all__ = ["StoredTensor", "packed_tensors", "read_packed_tensor", "read_plain", "write_layer_file"]

TYPES = {np.dtype(np.uint8): "U8", np.dtype(np.float16): "F16", np.dtype(np.float32): "F32", np.dtype(np.int64): "I64"}
write_layer_file = write_safetensors


def packed_tensors(name: str, tensor: PackedWeight) -> list[StoredTensor]:
    """Every part of a packed weight, to be stored."""
    parts = to_parts(tensor).items()
    return [StoredTensor(name + s, TYPES[a.dtype], a.shape, [np.ascontiguousarray(a).tobytes()]) for s, a in parts]


def read_packed_tensor(path: Path, layer: LayerRecord, in_features: int) -> PackedWeight:
    """What `packed_tensors` made, from a file whose hash the journal has confirmed."""
    with safe_open(path, "numpy") as file:
        return from_parts(layer, in_features, lambda suffix: file.get_tensor(layer.name + suffix))


def read_plain(path: Path, name: str) -> Tensor:
    """A weight in floating point, in float32."""
    with safe_open(path, "pt") as file:
        values: Tensor = file.get_tensor(name)
    return values.float()
