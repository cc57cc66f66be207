"""An opened checkpoint: its spec, and its weights by role, read on demand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.checkpoint.floats import read_rows
from dlm_edge.checkpoint.packed import read_packed
from dlm_edge.checkpoint.regular_file import RegularFile
from dlm_edge.checkpoint.safetensors_header import TensorEntry
from dlm_edge.families.family import Family
from dlm_edge.families.spec import ModelSpec
from dlm_edge.files import sha256_of
from dlm_edge.quantized import (
    PACKED_SUFFIX,
    SCALE_SUFFIX,
    LayerRecord,
    QuantizationRecord,
    QuantizedTensor,
    dequantize,
)


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
    _packed: dict[str, LayerRecord]  # by tensor name

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
        """How the weight is stored: F32, F16, BF16, or int2 ... int8 when packed."""
        layer = self._packed.get(self.tensor_name(role))
        return f"int{layer.bits}" if layer else self._tensors[self.tensor_name(role)].dtype

    def stored_bytes(self, role: str) -> int:
        name = self.tensor_name(role)
        parts = [name + PACKED_SUFFIX, name + SCALE_SUFFIX] if name in self._packed else [name]
        return sum(self._tensors[part].end - self._tensors[part].begin for part in parts)

    def load(self, role: str) -> NDArray[np.float32]:
        """The whole weight in float32, dequantized when packed. Raises E-NAN, E-CHANGED."""
        return self.load_rows(role, 0, self._shapes[role][0])

    def load_rows(self, role: str, first: int, last: int) -> NDArray[np.float32]:
        """Rows [first, last) of the weight in float32, for those too large to hold at once."""
        assert 0 <= first <= last <= self._shapes[role][0], (role, first, last)
        name = self.tensor_name(role)
        if name in self._packed:
            return dequantize(read_packed(self._packed[name], self._tensors, first, last))
        return read_rows(self._tensors[name], first, last)

    def load_packed(self, role: str) -> QuantizedTensor | None:
        """Codes and scales as they are stored; None for a weight in floating point."""
        layer = self._packed.get(self.tensor_name(role))
        return read_packed(layer, self._tensors, 0, self._shapes[role][0]) if layer else None

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
