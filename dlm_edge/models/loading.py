"""A checkpoint folder to a torch module."""

from __future__ import annotations

from pathlib import Path

import torch

from dlm_edge.checkpoint import Checkpoint, open_checkpoint
from dlm_edge.models.transformer import DiffusionTransformer


def load_model(path: Path | str, dtype: torch.dtype = torch.float32) -> DiffusionTransformer:
    """The model in eval mode, every weight in `dtype` (packed weights dequantized), without gradients."""
    return build_model(open_checkpoint(path), dtype)


def build_model(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> DiffusionTransformer:
    """As `load_model`, for a checkpoint that is open already. One weight at a time is held twice."""
    with torch.device("meta"):
        model = DiffusionTransformer(checkpoint.spec)
    for role in checkpoint.roles():
        owner, leaf = role.rsplit(".", 1)
        weight = torch.from_numpy(checkpoint.load(role)).to(dtype)
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(weight, requires_grad=False))
    checkpoint.check_unchanged()
    if checkpoint.spec.tied_head:
        model.head.weight = model.embed.weight
    return model.eval()
