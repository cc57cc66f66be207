"""A checkpoint folder to a torch module."""

from __future__ import annotations

from pathlib import Path

import torch

from dlm_edge.checkpoint import Checkpoint, open_checkpoint
from dlm_edge.models.int8_linear import with_int8_activations
from dlm_edge.models.transformer import DiffusionTransformer
from dlm_edge.quantized import QuantizedTensor


def load_model(path: Path | str, dtype: torch.dtype = torch.float32) -> DiffusionTransformer:
    """The model in eval mode, every weight in `dtype` (packed weights dequantized), without gradients.

    Layers recorded with int8 activations round their inputs (int8_linear.py).
    """
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
    round_activations(model, checkpoint, checkpoint.roles())
    return model.eval()


def round_activations(module: torch.nn.Module, checkpoint: Checkpoint, roles: list[str], prefix: str = "") -> None:
    """Replace, in place, the linears of `roles` whose record says int8 activations; `module` stands under `prefix`."""
    for role in roles:
        record = checkpoint.layer_record(role)
        if record is None or record.activations != "int8":
            continue
        packed = checkpoint.load_packed(role) if record.outlier_columns else None
        outliers = packed.outliers if isinstance(packed, QuantizedTensor) else None
        owner, _, leaf = role.removeprefix(prefix).removesuffix(".weight").rpartition(".")
        parent = module.get_submodule(owner)
        replaced = with_int8_activations(getattr(parent, leaf), [] if outliers is None else outliers.columns.tolist())
        setattr(parent, leaf, replaced)
