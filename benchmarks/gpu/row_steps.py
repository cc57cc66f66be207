"""XQuant's rematerialisation of the selected positions of one layer: fused, and as two operators with memory between.

What is stored are the inputs of the layer where it has a kv head for every query head, else latents as wide as keys;
keys and values are both made again. The fused form needs a float16 projection: the map back from latents, or a layer's
own weight where that is not quantized.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from dlm_edge.kernels.dequantize_rows.reference import Axis, encode_rows
from dlm_edge.kernels.rematerialise_rows.reference import rematerialise_rows
from dlm_edge.kernels.triton import launch_rows

GROUP = 128
STEPS = ("rows fused", "rows in two")
BITS = (8, 4, 3, 2)


@dataclass(frozen=True)
class RowShape:
    """`n_in` is the width of what is stored, `n_out` that of keys or values; equal for latents."""

    model: str
    n_in: int
    n_out: int
    by_latents: bool
    prefix: int
    n: int  # positions to make again

    @classmethod
    def of(cls, model: str, heads: tuple[int, int, int], prefix: int, n: int) -> RowShape:
        n_heads, n_kv_heads, head_dim = heads
        width = n_kv_heads * head_dim
        latents = n_kv_heads < n_heads
        return cls(model, width if latents else n_heads * head_dim, width, latents, prefix, min(n, prefix))


@dataclass
class RowWork:
    shape: RowShape
    bits: int
    device: str = "cuda"
    seed: int = 0
    stored: dict[str, tuple[list[torch.Tensor], Axis]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        s, rng = self.shape, np.random.default_rng(self.seed)
        capacity = -(-s.prefix // GROUP) * GROUP
        kinds: dict[str, Axis] = {"k": "channel", "v": "token"} if s.by_latents else {"x": "token"}
        for kind, axis in kinds.items():
            part = rng.standard_normal((GROUP, s.n_in), dtype=np.float32)  # encoded once: the time is the device's
            group = GROUP if axis == "channel" or s.n_in % GROUP == 0 else s.n_in
            encoded = encode_rows(part, bits=self.bits, axis=axis, group=group)
            parts = [np.tile(each, (capacity // GROUP, 1)) for each in encoded]
            tail = part if axis == "channel" else part[:0]
            self.stored[kind] = [torch.from_numpy(each).to(self.device) for each in (*parts, tail)], axis
        rows = np.sort(rng.permutation(s.prefix)[: s.n])
        self.rows = torch.from_numpy(rows).to(self.device)
        scale = s.n_in**-0.5
        self.weights = [
            torch.from_numpy((scale * rng.standard_normal((s.n_in, s.n_out), dtype=np.float32)).astype(np.float16))
            .to(self.device) for _ in range(2)
        ]  # fmt: skip

    def parts(self) -> list[tuple[list[torch.Tensor], Axis]]:
        """What keys, then values, are made from."""
        return [self.stored.get(kind) or self.stored["x"] for kind in ("k", "v")]

    def step(self, name: str) -> list[torch.Tensor]:
        """Keys and values of the rows, [n, n_out] each, before bias, norm and RoPE."""
        numbers = (self.rows, self.shape.prefix)
        if name == "rows fused":
            return [
                launch_rows.rematerialise_rows(*stored, *numbers, weight, bits=self.bits, axis=axis)
                for (stored, axis), weight in zip(self.parts(), self.weights, strict=True)
            ]
        values = [
            launch_rows.dequantize_rows(*stored, *numbers, bits=self.bits, axis=axis).half()
            for stored, axis in self.stored.values()
        ]
        return [x @ weight for x, weight in zip([values[0], values[-1]], self.weights, strict=True)]

    def prepare(self, name: str) -> Callable[[], object]:
        return lambda: self.step(name)

    def bytes_read(self) -> float:
        """Codes, scales and offsets of the rows, and the weights."""
        s = self.shape
        codes = len(self.stored) * s.n * s.n_in * (self.bits / 8 + 4 / GROUP)
        return codes + sum(weight.nbytes for weight in self.weights)

    def error(self, name: str) -> float:
        """Relative to the largest value, against the definition."""
        largest = 0.0
        for found, (stored, axis), weight in zip(self.step(name), self.parts(), self.weights, strict=True):
            arrays = [each.cpu().numpy() for each in (*stored, self.rows)]
            wanted = rematerialise_rows(
                *arrays, self.shape.prefix, weight.cpu().numpy(), bits=self.bits, axis=axis
            ).astype(np.float32)  # fmt: skip
            difference = np.abs(found.cpu().numpy().astype(np.float32) - wanted).max(initial=0)
            largest = max(largest, float(difference / np.abs(wanted).max(initial=1e-9)))
        return largest
