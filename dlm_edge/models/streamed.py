"""Reference logits of a checkpoint with one layer in memory at a time: what exported graphs are checked against."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.models.loading import round_activations
from dlm_edge.models.transformer import Layer, RMSNorm, pattern, rope_tables


@torch.no_grad()
def streamed_logits(checkpoint: Checkpoint, sequences: list[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
    """Logits [seq, vocab_size] of every sequence, as `DiffusionTransformer.forward` gives them, in float32.

    The whole model is read once for all sequences together; memory is one layer, and the embedding or the head.
    """
    spec = checkpoint.spec
    table = torch.from_numpy(checkpoint.load("embed.weight"))
    hidden = [table[torch.from_numpy(ids)][None] for ids in sequences]
    if not spec.tied_head:
        del table
    for i in range(spec.n_layers):
        layer = load_layer(checkpoint, i)
        for n, x in enumerate(hidden):
            positions = torch.arange(x.shape[1])
            cos, sin = rope_tables(positions, spec.head_dim, spec.rope_theta)
            hidden[n] = layer(x, cos, sin, pattern(spec.conventions, positions))
    norm = RMSNorm(spec.hidden_size, spec.norm_eps)
    norm.weight.copy_(torch.from_numpy(checkpoint.load("final_norm.weight")))
    head = table if spec.tied_head else torch.from_numpy(checkpoint.load("head.weight"))
    return [(norm(x)[0] @ head[: spec.vocab_size].T).numpy() for x in hidden]


def load_layer(checkpoint: Checkpoint, i: int) -> Layer:
    """Layer `i` in float32, dequantized where its weights are packed, as `load_model` makes it."""
    prefix = f"layers.{i}."
    with torch.device("meta"):
        layer = Layer(checkpoint.spec)
    roles = layer_roles(layer, prefix)
    layer.load_state_dict({r.removeprefix(prefix): torch.from_numpy(checkpoint.load(r)) for r in roles}, assign=True)
    round_activations(layer, checkpoint, roles, prefix)
    return layer.eval().requires_grad_(False)


def layer_roles(layer: Layer, prefix: str) -> list[str]:
    return [prefix + name for name in layer.state_dict()]
