"""Weights of the finished block-causal model as the start of the model with full attention.

Look-up circuits form slowly where nothing normalises queries and keys, so the full model inherits them. Keys and
values of a group are repeated for each of its heads; the norm of queries and keys, which the layout has not, becomes
a constant per head: its gain over the root mean square measured on training text.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dlm_edge.families.spec import ModelSpec
from dlm_edge.models import load_model
from dlm_edge.models.transformer import DiffusionTransformer, Layer


def start_from(source: Path, spec: ModelSpec, text_ids: Tensor) -> dict[str, Tensor]:
    """State of a model of `spec` (full attention, no q/k norm, heads of its own) that behaves as `source` nearly does.

    ValueError where the widths or the number of layers differ.
    """
    model = load_model(source)
    given = model.spec
    same = ["hidden_size", "n_layers", "n_heads", "head_dim", "intermediate_size", "vocab_size"]
    different = [name for name in same if getattr(given, name) != getattr(spec, name)]
    if different or not given.qk_norm:
        raise ValueError(f"{source}: cannot start from it, these differ: {', '.join(different) or 'qk_norm'}")
    rms = head_rms(model, text_ids)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if "q_norm" not in name}
    state = {name: tensor for name, tensor in state.items() if "k_norm" not in name}
    state["head.weight"] = model.head.weight.detach().clone()
    repeats = spec.n_kv_heads // given.n_kv_heads
    for i, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        for role, norm in (("q", layer.q_norm), ("k", layer.k_norm)):
            per_head = state[f"layers.{i}.{role}.weight"].view(-1, given.head_dim, given.hidden_size)
            per_head = per_head * (norm.weight / rms[i, role][:, None])[:, :, None]
            state[f"layers.{i}.{role}.weight"] = per_head.flatten(0, 1).detach()
        for role in ("k", "v"):
            per_head = state[f"layers.{i}.{role}.weight"].view(-1, given.head_dim, given.hidden_size)
            state[f"layers.{i}.{role}.weight"] = per_head.repeat_interleave(repeats, 0).flatten(0, 1)
    return state


@torch.no_grad()
def head_rms(model: DiffusionTransformer, text_ids: Tensor) -> dict[tuple[int, str], Tensor]:
    """Root mean square [heads] of queries and keys in front of their norms, over 16 pieces of text."""
    rms: dict[tuple[int, str], Tensor] = {}
    hooks = []
    for i, layer in enumerate(model.layers):
        for role, norm in (("q", layer.q_norm), ("k", layer.k_norm)):

            def keep(_: object, inputs: tuple[Tensor], key: tuple[int, str] = (i, role)) -> None:
                rms[key] = inputs[0].float().square().mean(dim=(0, 1, 3)).sqrt()

            hooks.append(norm.register_forward_pre_hook(keep))
    model(text_ids[: 16 * 128].view(16, 128))
    for hook in hooks:
        hook.remove()
    return rms
