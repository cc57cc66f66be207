"""Tiny random checkpoints in the true layout of every family, for all tests: `make_checkpoint(folder, "sdar")`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dlm_edge.families import FAMILIES
from dlm_edge.families.roles import role_shapes
from dlm_edge.families.spec import Conventions, ModelSpec

FAMILY_NAMES = ("llada", "dream", "sdar", "fast_dllm_v2")
EOS, MASK, PAD = "<|endoftext|>", "<|mask|>", "<|pad|>"
TEXT_IDS = 256 + 40  # the bytes and a few merges; EOS, MASK and PAD follow
EOS_ID, MASK_ID, PAD_ID = TEXT_IDS, TEXT_IDS + 1, TEXT_IDS + 2
VOCAB_SIZE = TEXT_IDS + 3
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def make_spec(family: str, *, tied: bool | None = None, padded_rows: int = 0, **overrides: Any) -> ModelSpec:
    """What the tiny checkpoint of a family is; `overrides` are fields of ModelSpec or of Conventions."""
    full, shifted = family in ("llada", "dream"), family in ("dream", "fast_dllm_v2")
    block = overrides.pop("block_length", 8)
    conventions: dict[str, Any] = {
        "mask_id": MASK_ID,
        "logit_shift": int(shifted),
        "attention": "full" if full else "block_causal",
        "block_length": block,
        "sub_block_length": block // 2 if family == "fast_dllm_v2" else block,
        "grid_origin": "prompt_end" if full else "zero",
        "first_token_rule": "previous_logit" if shifted else "predicted",
        "kv_commit_rule": "approximate" if full else "extra_pass",
        "stop_ids": (EOS_ID,),
        "eos_id": EOS_ID,
        "pad_id": PAD_ID,
    }
    dimensions: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "embedding_rows": VOCAB_SIZE + padded_rows,
        "hidden_size": 64,
        "n_layers": 3,
        "n_heads": 4,
        "n_kv_heads": 4 if family == "llada" else 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "rope_theta": 10000.0,
        "norm_eps": 1e-6,
        "max_positions": 512,
        "tied_head": family == "sdar" if tied is None else tied,
    }
    for key, value in overrides.items():
        target = conventions if key in conventions else dimensions
        if key not in target:
            raise TypeError(f"unknown override {key}")
        target[key] = value
    return ModelSpec(
        family=family,
        architecture=FAMILIES[family].architectures[0],
        qkv_bias=shifted,
        qk_norm=family == "sdar",
        conventions=Conventions(**conventions),
        **dimensions,
    )


def make_checkpoint(
    folder: Path | str,
    family: str,
    *,
    seed: int = 0,
    tied: bool | None = None,
    shards: int = 1,
    padded_rows: int = 0,
    dtype: str = "bfloat16",
    config: dict[str, Any] | None = None,
    **overrides: Any,
) -> Path:
    """Write a checkpoint with random weights and return its folder, which may exist already.

    Dimensions are `overrides` (`n_layers=2, block_length=4`); `config` replaces or adds keys of config.json
    itself, a None value removes the key. dtype is bfloat16, float16 or float32. Default tying: SDAR only.
    """
    spec = make_spec(family, tied=tied, padded_rows=padded_rows, **overrides)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    keys = FAMILIES[family].to_config(spec) | {"torch_dtype": dtype} | (config or {})
    _write_json(folder / "config.json", {k: v for k, v in keys.items() if v is not None})
    _write_json(folder / "generation_config.json", {"eos_token_id": spec.conventions.eos_id})
    make_tokenizer().save(str(folder / "tokenizer.json"))
    special = {"eos_token": EOS, "pad_token": PAD, "mask_token": MASK}
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | special)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    names = FAMILIES[family].tensor_name
    tensors = {names(role): weight for role, weight in make_weights(spec, seed).items()}
    save_tensors(folder, tensors, dtype, shards)
    return folder


def make_weights(spec: ModelSpec, seed: int) -> dict[str, np.ndarray]:
    """Random float32 weights by role, scaled so that logits have a standard deviation of about 3."""
    rng = np.random.default_rng(seed)
    weights = {}
    for role, shape in role_shapes(spec).items():
        noise = rng.standard_normal(shape).astype(np.float32)
        if role.endswith("norm.weight"):
            weights[role] = 1 + 0.2 * noise
        elif role.endswith(".bias"):
            weights[role] = 0.3 * noise
        elif role in ("embed.weight", "head.weight"):
            weights[role] = 3 * noise * spec.hidden_size**-0.5
        else:
            weights[role] = 1.2 * noise * shape[1] ** -0.5
    return weights


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE: 256 bytes, 40 merges of common letter pairs, three special tokens at the end."""
    pairs = [a + b for a in "aeiou" for b in "nrstlmcd"]
    vocab = {token: i for i, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), *pairs])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[(pair[0], pair[1]) for pair in pairs]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS, MASK, PAD])
    return tokenizer


def save_tensors(folder: Path, tensors: dict[str, np.ndarray], dtype: str, shards: int = 1) -> None:
    """model.safetensors, or `shards` files and the index."""
    stored = {name: _store(weight, dtype) for name, weight in tensors.items()}
    if shards == 1:
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        return
    where = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(stored)}
    for file in set(where.values()):
        save_file({n: t for n, t in stored.items() if where[n] == file}, folder / file, {"format": "pt"})
    size = sum(t.nbytes for t in stored.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})


def _store(weight: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        import ml_dtypes  # the numpy type that safetensors writes as BF16

        return weight.astype(ml_dtypes.bfloat16)
    return weight.astype(dtype)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2))
