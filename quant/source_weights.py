"""Weights of the source checkpoint in float32, and back in the type they are stored in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.checkpoint.floats import to_float32
from dlm_edge.checkpoint.shards import read_tensors
from dlm_edge.models.streamed import layer_roles
from dlm_edge.models.transformer import Layer

CHUNK_VALUES = 4 << 20


class SourceWeights:
    """Reads by role. NaN and infinity raise E-NAN, or become zero and are counted in `zeroed` when that was asked for."""

    def __init__(self, checkpoint: Checkpoint, *, zero_nonfinite: bool) -> None:
        self.checkpoint, self.zero_nonfinite = checkpoint, zero_nonfinite
        self.entries = read_tensors(checkpoint.path)
        self.zeroed: dict[str, int] = {}  # role: number of values

    def load(self, role: str) -> NDArray[np.float32]:
        return self.rows(role, 0, self.checkpoint.shape(role)[0])

    def rows(self, role: str, first: int, last: int) -> NDArray[np.float32]:
        if not self.zero_nonfinite:
            return self.checkpoint.load_rows(role, first, last)
        entry = self.entries[self.checkpoint.tensor_name(role)]
        row_bytes = (entry.end - entry.begin) // entry.shape[0]
        raw = entry.file.read(entry.begin + first * row_bytes, (last - first) * row_bytes)
        values = to_float32(np.frombuffer(raw, np.uint8), entry.dtype).reshape(last - first, *entry.shape[1:])
        bad = ~np.isfinite(values)
        if bad.any():
            self.zeroed[role] = self.zeroed.get(role, 0) + int(bad.sum())
            values = np.where(bad, np.float32(0), values)
        return values

    def layer(self, i: int) -> Layer:
        """Layer `i` as a torch module in float32."""
        prefix = f"layers.{i}."
        with torch.device("meta"):
            layer = Layer(self.checkpoint.spec)
        roles = layer_roles(layer, prefix)
        state = {role.removeprefix(prefix): torch.from_numpy(self.load(role)) for role in roles}
        layer.load_state_dict(state, assign=True)
        return layer.eval().requires_grad_(False)

    def stored(self, role: str) -> Iterator[bytes]:
        """The weight in its stored type, in pieces; the same bytes as in the source unless values were zeroed."""
        shape, dtype = self.checkpoint.shape(role), self.checkpoint.dtype(role)
        per_chunk = max(1, CHUNK_VALUES // int(np.prod(shape[1:], dtype=np.int64)))
        for first in range(0, shape[0], per_chunk):
            yield to_stored(self.rows(role, first, min(first + per_chunk, shape[0])), dtype)


def to_stored(values: NDArray[np.float32], dtype: str) -> bytes:
    """Little-endian bytes; exact for values that came from this type."""
    if dtype == "BF16":
        return (np.ascontiguousarray(values).view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype("<f2" if dtype == "F16" else "<f4").tobytes()
