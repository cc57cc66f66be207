"""A random layer of any family, batches and hidden states for it, and its function: for tests of what changes layers."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_edge.models.transformer import Layer, dense_attention, rope_tables
from dlm_edge.quant.layer_pass import run_stages
from dlm_edge.quant.states import Batch
from dlm_edge.quant.statistics import InputStatistics
from tests.tiny import make_spec


def make_layer(family: str, **overrides) -> Layer:
    torch.manual_seed(0)
    layer = Layer(make_spec(family, **overrides)).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else parameter.shape[1] ** -0.5))
    return layer


def make_batch(rows: int = 4, length: int = 32) -> Batch:
    ids = torch.zeros(rows, length, dtype=torch.int64)
    return Batch(ids, ids, torch.arange(length), torch.ones(rows, length), dense_attention(None))


def make_hidden(layer: Layer, rows: int = 4, length: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(rows, length, layer.spec.hidden_size, generator=torch.Generator().manual_seed(seed))


def run_layer(layer: Layer, x: Tensor) -> Tensor:
    cos, sin = rope_tables(torch.arange(x.shape[1]), layer.spec.head_dim, layer.spec.rope_theta)
    out: Tensor = layer(x, cos, sin, dense_attention(None))
    return out


def statistics_of(x: Tensor, name: str = "w") -> InputStatistics:
    """x [tokens, in], all of weight 1."""
    statistics = InputStatistics(name, x.shape[-1])
    statistics.add(x, torch.ones(len(x)))
    return statistics


def inputs_of(layer: Layer, batch: Batch, hidden: Tensor) -> dict[str, Tensor]:
    """The input [tokens, in] of every linear."""
    found = {}
    for linears, inputs in run_stages(layer, layer.spec, [batch], [hidden]):
        found |= {linear: inputs[0].flatten(0, 1).clone() for linear in linears}
    return found
