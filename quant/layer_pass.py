"""One layer over all calibration states, stopping before each group of linears that reads the same input."""

from __future__ import annotations

from collections.abc import Generator

import torch
import torch.nn.functional as F
from torch import Tensor

from dlm_edge.families.spec import ModelSpec
from dlm_edge.models.transformer import Attend, Layer, rope_tables
from dlm_edge.quant.states import Batch

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
Stage = tuple[tuple[str, ...], list[Tensor]]  # linears that read the same inputs, and these


class CaptureMix:
    """Attention that keeps its last result: what the output projection will read."""

    def __init__(self, attend: Attend) -> None:
        self.attend = attend
        self.mixed = torch.empty(0)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.mixed = self.attend(q, k, v)
        return self.mixed


def run_stages(
    layer: Layer, spec: ModelSpec, batches: list[Batch], hidden: list[Tensor], zeroed: list[int] | None = None
) -> Generator[Stage]:
    """Yield (linears, their inputs [rows, seq, in] per batch) in forward order; `hidden` advances in place.

    The caller may replace the weights of the yielded linears before it asks for the next group: all that
    follows, inside this layer too, then sees the new weights. With `zeroed`, NaN and infinite inputs become zero and
    their number is appended to it.
    """
    inputs = [layer.attn_norm(x) for x in hidden]
    yield ("q", "k", "v"), finite(inputs, zeroed)
    for n, batch in enumerate(batches):
        inputs[n] = attention_mix(layer, spec, batch, inputs[n])
    yield ("o",), finite(inputs, zeroed)
    for n, x in enumerate(hidden):
        hidden[n] = x + layer.o(inputs[n])
        inputs[n] = layer.mlp_norm(hidden[n])
    yield ("gate", "up"), finite(inputs, zeroed)
    for n, x in enumerate(inputs):
        inputs[n] = F.silu(layer.gate(x)) * layer.up(x)
    yield ("down",), finite(inputs, zeroed)
    for n, x in enumerate(hidden):
        hidden[n] = x + layer.down(inputs[n])


def finite(inputs: list[Tensor], zeroed: list[int] | None) -> list[Tensor]:
    if zeroed is not None:
        count = sum(int((~torch.isfinite(x)).sum()) for x in inputs)
        zeroed.append(count)
        if count:
            inputs[:] = [torch.nan_to_num(x, 0.0, 0.0, 0.0) for x in inputs]
    return inputs


def attention_mix(layer: Layer, spec: ModelSpec, batch: Batch, normed: Tensor) -> Tensor:
    """The input of `o` [rows, seq, n_heads * head_dim]."""
    cos, sin = rope_tables(batch.positions, spec.head_dim, spec.rope_theta)
    capture = CaptureMix(batch.attend)
    layer.attention(normed, cos, sin, capture)
    return capture.mixed.transpose(1, 2).flatten(2)


def advance(
    layer: Layer, spec: ModelSpec, batches: list[Batch], hidden: list[Tensor], *, zero_nonfinite: bool = False
) -> None:
    """`hidden` through the whole layer, by the very operations of `run_stages`: a resumed job repeats its bits."""
    for _ in run_stages(layer, spec, batches, hidden, [] if zero_nonfinite else None):
        pass
