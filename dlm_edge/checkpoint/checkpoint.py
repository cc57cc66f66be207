"""An opened checkpoint: its spec, and its weights by role, read on demand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.checkpoint.floats import CHUNK_BYTES, read_rows
from dlm_edge.checkpoint.packed_layer import PackedLayer
from dlm_edge.checkpoint.regular_file import RegularFile
from dlm_edge.checkpoint.safetensors_header import TensorEntry
from dlm_edge.families.family import Family
from dlm_edge.families.spec import ModelSpec
from dlm_edge.files import sha256_of
from dlm_edge.quantized import LayerRecord, PackedWeight, QuantizationRecord


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights by role (`layers.0.q.weight`), read on demand; nothing is mapped, nothing stays open."""

    path: Path
    spec: ModelSpec
    config: dict[str, Any]
    record: QuantizationRecord | None
    family: Family
    _shapes: dict[str, tuple[int, ...]]
    _tensors: dict[str, TensorEntry]
    _packed: dict[str, PackedLayer]  # by tensor name

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def roles(self) -> list[str]:
        return list(self._shapes)

    def tensor_name(self, role: str) -> str:
        return self.family.tensor_name(role)

    def shape(self, role: str) -> tuple[int, ...]:
        return self._shapes[role]

    def dtype(self, role: str) -> str:
        """How the weight is stored: F32, F16, BF16, or int2 ... int8, nf4, fp4 when packed."""
        layer = self.layer_record(role)
        if layer is None:
            return self._tensors[self.tensor_name(role)].dtype
        return f"int{layer.bits}" if layer.format == "int" else layer.format

    def layer_record(self, role: str) -> LayerRecord | None:
        """How the weight was quantized; None for a weight in floating point."""
        layer = self._packed.get(self.tensor_name(role))
        return None if layer is None else layer.record

    def packed_layer(self, role: str) -> PackedLayer | None:
        """The tensors of a packed weight, and how they are read; None for a weight in floating point."""
        return self._packed.get(self.tensor_name(role))

    def stored_bytes(self, role: str) -> int:
        name = self.tensor_name(role)
        entries = self._packed[name].entries.values() if name in self._packed else [self._tensors[name]]
        return sum(entry.end - entry.begin for entry in entries)

    def load(self, role: str) -> NDArray[np.float32]:
        """The whole weight in float32, dequantized when packed. Raises E-NAN, E-CHANGED."""
        return self.load_rows(role, 0, self._shapes[role][0])

    def load_rows(self, role: str, first: int, last: int) -> NDArray[np.float32]:
        """Rows [first, last) of the weight in float32, for those too large to hold at once."""
        assert 0 <= first <= last <= self._shapes[role][0], (role, first, last)
        name = self.tensor_name(role)
        if name in self._packed:
            return self._packed[name].rows(first, last)
        return read_rows(self._tensors[name], first, last)

    def load_packed(self, role: str) -> PackedWeight | None:
        """Codes and scales as they are stored; None for a weight in floating point."""
        layer = self._packed.get(self.tensor_name(role))
        return layer.read(0, layer.shape[0]) if layer else None

    def stored_pieces(self, role: str) -> Iterator[bytes]:
        """The bytes of a weight in floating point as they are stored, some at a time."""
        entry = self._tensors[self.tensor_name(role)]
        for at in range(entry.begin, entry.end, CHUNK_BYTES):
            yield entry.file.read(at, min(CHUNK_BYTES, entry.end - at))

    def weight_files(self) -> list[dict[str, Any]]:
        """Name, size and sha256 of every weight file; reads them whole."""
        files = sorted(self._files().items())
        return [{"name": path.name, "size": file.size, "sha256": sha256_of(path)} for path, file in files]

    def check_unchanged(self) -> None:
        """Raise E-CHANGED if a weight file is no longer what it was when the checkpoint was opened."""
        for file in self._files().values():
            file.check_unchanged()

    def _files(self) -> dict[Path, RegularFile]:
        return {entry.file.path: entry.file for entry in self._tensors.values()}
