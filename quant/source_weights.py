"""Weights of the source checkpoint in float32, rotated where that was asked for, and back in the type they are stored in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.checkpoint.floats import to_float32
from dlm_edge.checkpoint.shards import read_tensors
from dlm_edge.models.streamed import layer_roles
from dlm_edge.models.transformer import Layer
from dlm_edge.quant.rotation import Rotation

CHUNK_VALUES = 4 << 20


class SourceWeights:
    """Reads by role. NaN and infinity raise E-NAN, or become zero and are counted in `zeroed` when that was asked for.

    With a `rotation` a tied head becomes one of its own (`head.weight`), made from the embedding.
    """

    def __init__(self, checkpoint: Checkpoint, *, zero_nonfinite: bool, rotation: Rotation | None = None) -> None:
        self.checkpoint, self.zero_nonfinite, self.rotation = checkpoint, zero_nonfinite, rotation
        self.entries = read_tensors(checkpoint.path)
        self.zeroed: dict[str, int] = {}  # role: number of values
        self._counted: dict[str, int] = {}  # role: rows already looked at; many are read more than once

    def origin(self, role: str) -> str:
        """The role in the source that `role` is made from."""
        return "embed.weight" if role == "head.weight" and self.checkpoint.spec.tied_head else role

    def shape(self, role: str) -> tuple[int, ...]:
        return self.checkpoint.shape(self.origin(role))

    def rows(self, role: str, first: int, last: int) -> NDArray[np.float32]:
        """Rows [first, last) as the quantized model will use them; for layers see `layer`."""
        values = self.source_rows(self.origin(role), first, last)
        if self.rotation is None:
            return values
        if role == "embed.weight":
            return self.rotation.embedding(torch.from_numpy(values)).numpy()
        if role == "head.weight":
            gain = torch.from_numpy(self.source_rows("final_norm.weight", 0, self.shape("final_norm.weight")[0]))
            return self.rotation.head(torch.from_numpy(values), gain).numpy()
        return np.ones_like(values) if role == "final_norm.weight" else values

    def source_rows(self, role: str, first: int, last: int) -> NDArray[np.float32]:
        if not self.zero_nonfinite:
            return self.checkpoint.load_rows(role, first, last)
        entry = self.entries[self.checkpoint.tensor_name(role)]
        row_bytes = (entry.end - entry.begin) // entry.shape[0]
        raw = entry.file.read(entry.begin + first * row_bytes, (last - first) * row_bytes)
        values = to_float32(np.frombuffer(raw, np.uint8), entry.dtype).reshape(last - first, *entry.shape[1:])
        bad = ~np.isfinite(values)
        if bad.any():
            new = int(bad[max(0, self._counted.get(role, 0) - first) :].sum())
            self.zeroed[role] = self.zeroed.get(role, 0) + new
            values = np.where(bad, np.float32(0), values)
        self._counted[role] = max(self._counted.get(role, 0), last)
        return values

    def embedded(self, ids: Tensor, *, rotated: bool = True) -> Tensor:
        """Rows `ids` [...] of the embedding as [..., width], without the whole of it in memory."""
        role = "embed.weight"
        wanted, places = torch.unique(ids, return_inverse=True)
        rows = torch.empty(len(wanted), self.shape(role)[1])
        per_chunk = max(1, CHUNK_VALUES // self.shape(role)[1])
        for first in range(0, self.shape(role)[0], per_chunk):
            last = min(first + per_chunk, self.shape(role)[0])
            here = (wanted >= first) & (wanted < last)
            if here.any():
                rows[here] = torch.from_numpy(self.source_rows(role, first, last))[wanted[here] - first]
        if rotated and self.rotation is not None:
            rows = self.rotation.embedding(rows)
        return rows[places]

    def layer(self, i: int) -> Layer:
        """Layer `i` as a torch module in float32, as it is quantized."""
        layer = self.source_layer(i)
        if self.rotation is not None:
            self.rotation.layer(layer)
        return layer

    def source_layer(self, i: int) -> Layer:
        """The same before any rotation."""
        prefix = f"layers.{i}."
        with torch.device("meta"):
            layer = Layer(self.checkpoint.spec)
        state = {
            role.removeprefix(prefix): torch.from_numpy(self.source_rows(role, 0, self.checkpoint.shape(role)[0]))
            for role in layer_roles(layer, prefix)
        }
        layer.load_state_dict(state, assign=True)
        return layer.eval().requires_grad_(False)

    def is_changed(self, role: str, values: NDArray[np.float32]) -> bool:
        """Whether `values` differ from the source: such a weight is stored in float32."""
        shape = self.checkpoint.shape(role)
        return not np.array_equal(self.source_rows(role, 0, shape[0]), values)

    def stored(self, role: str) -> Iterator[bytes]:
        """The source's weight in its stored type, in pieces; the same bytes unless values were zeroed."""
        shape, dtype = self.checkpoint.shape(role), self.checkpoint.dtype(role)
        per_chunk = max(1, CHUNK_VALUES // int(np.prod(shape[1:], dtype=np.int64)))
        for first in range(0, shape[0], per_chunk):
            yield to_stored(self.source_rows(role, first, min(first + per_chunk, shape[0])), dtype)

    def zeroed_beside(self, roles: Iterable[str], packed: Iterable[str]) -> list[str]:
        """Norms, biases and skipped weights have no record of their own: the nearest one tells of them."""
        told = set(map(self.origin, packed))
        found = [(r, self.zeroed.get(r, 0)) for r in dict.fromkeys(map(self.origin, roles)) if r not in told]
        named = [(self.checkpoint.tensor_name(role), count) for role, count in found if count]
        return [f"{count} NaN or infinite values of {name} set to zero" for name, count in named]

    def in_float32(self, role: str) -> Iterator[bytes]:
        """What the quantized model will use, in float32 and in pieces."""
        shape = self.shape(role)
        per_chunk = max(1, CHUNK_VALUES // int(np.prod(shape[1:], dtype=np.int64)))
        for first in range(0, shape[0], per_chunk):
            yield self.rows(role, first, min(first + per_chunk, shape[0])).astype("<f4").tobytes()


def to_stored(values: NDArray[np.float32], dtype: str) -> bytes:
    """Little-endian bytes; exact for values that came from this type."""
    if dtype == "BF16":
        return (np.ascontiguousarray(values).view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype("<f2" if dtype == "F16" else "<f4").tobytes()
