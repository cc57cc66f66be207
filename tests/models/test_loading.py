"""Loaded models against an independent NumPy forward pass, and what each attention pattern lets through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.families.spec import ModelSpec
from dlm_edge.models import load_model
from tests.tiny import FAMILY_NAMES, TEXT_IDS, make_checkpoint

Array = NDArray[np.float64]


def norm(x: Array, weight: Array, eps: float) -> Array:
    scaled: Array = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight
    return scaled


def rotated(x: Array, theta: float) -> Array:
    """x [seq, heads, dim]: the pair (i, i + dim / 2) turns by position * theta**(-2 i / dim), as complex numbers."""
    half = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, None]
    return np.concatenate([turned.real, turned.imag], -1)


def attention(spec: ModelSpec, w: dict[str, Array], at: str, h: Array) -> Array:
    def heads(name: str, count: int) -> Array:
        x = h @ w[f"{at}.{name}.weight"].T + w.get(f"{at}.{name}.bias", np.zeros(1))
        x = x.reshape(len(h), count, spec.head_dim)
        return norm(x, w[f"{at}.{name}_norm.weight"], spec.norm_eps) if spec.qk_norm and name != "v" else x

    q, k = rotated(heads("q", spec.n_heads), spec.rope_theta), rotated(heads("k", spec.n_kv_heads), spec.rope_theta)
    v, out = heads("v", spec.n_kv_heads), np.zeros((len(h), spec.n_heads, spec.head_dim))
    for i in range(len(h)):
        end = spec.visible_end(i) or len(h)
        for head in range(spec.n_heads):
            group = head * spec.n_kv_heads // spec.n_heads
            scores = k[:end, group] @ q[i, head] / spec.head_dim**0.5
            weights = np.exp(scores - scores.max())
            out[i, head] = weights / weights.sum() @ v[:end, group]
    return out.reshape(len(h), -1) @ w[f"{at}.o.weight"].T


def forward(spec: ModelSpec, w: dict[str, Array], ids: NDArray[np.int64]) -> Array:
    x = w["embed.weight"][ids]
    for i in range(spec.n_layers):
        at = f"layers.{i}"
        x = x + attention(spec, w, at, norm(x, w[f"{at}.attn_norm.weight"], spec.norm_eps))
        h = norm(x, w[f"{at}.mlp_norm.weight"], spec.norm_eps)
        gate = h @ w[f"{at}.gate.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w[f"{at}.up.weight"].T)) @ w[f"{at}.down.weight"].T
    return norm(x, w["final_norm.weight"], spec.norm_eps) @ w.get("head.weight", w["embed.weight"]).T


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_equals_an_independent_forward_pass(tmp_path: Path, family: str, tied: bool) -> None:
    folder = make_checkpoint(tmp_path, family, tied=tied, padded_rows=5, shards=2)
    checkpoint = open_checkpoint(folder)
    weights = {role: checkpoint.load(role).astype(np.float64) for role in checkpoint.roles()}
    ids = np.random.default_rng(1).integers(0, TEXT_IDS, 29)
    want = forward(checkpoint.spec, weights, ids)
    with torch.no_grad():
        got = load_model(folder)(torch.from_numpy(ids)[None])[0].double().numpy()
    assert got.shape == want.shape == (29, checkpoint.spec.embedding_rows)
    assert np.abs(got - want).max() / np.abs(want).max() < 1e-5


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_later_blocks_are_seen_only_with_full_attention(tmp_path: Path, family: str) -> None:
    model = load_model(make_checkpoint(tmp_path, family))
    ids = torch.arange(24)[None]
    changed = ids.clone()
    changed[0, 17] = 200
    with torch.no_grad():
        moved = (model(ids) - model(changed)).abs().amax(-1)[0]
    if model.spec.conventions.attention == "full":
        assert (moved > 0).all()
    else:  # blocks of 8: position 17 lies in [16, 24), and all of that block sees it
        assert (moved[:16] == 0).all() and (moved[16:] > 0).all()


def test_weights_are_shared_when_tied_and_keep_their_type(tmp_path: Path) -> None:
    model = load_model(make_checkpoint(tmp_path, "sdar"), torch.bfloat16)
    assert model.head.weight is model.embed.weight
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert not any(p.is_meta for p in model.parameters())
