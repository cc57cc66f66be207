"""One safetensors file, written in pieces, so that no tensor has to be in memory before its turn comes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlm_edge import files
from dlm_edge.checkpoint.safetensors_header import ITEM_BYTES


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


def write_safetensors(path: Path, tensors: Sequence[StoredTensor]) -> None:
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
            written = 0
            for piece in tensor.pieces:
                written += len(piece)
                files.calls.write(file, piece)
            assert written == tensor.size_bytes, (tensor.name, written)


write_layer_file = write_safetensors
