"""A checkpoint with random weights and the shape of a real model: for speed, where real weights are not needed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from dlm_edge.families import FAMILIES
from dlm_edge.families.spec import Conventions, ModelSpec
from dlm_edge.models.transformer import DiffusionTransformer

SHAPES = {  # hidden, layers, heads, kv heads, head_dim, feed-forward, vocabulary
    "0.5b": (896, 24, 14, 2, 64, 4864, 151936),  # Qwen2.5-0.5B
    "1.7b": (2048, 28, 16, 8, 128, 6144, 151936),  # Qwen3-1.7B, which SDAR-1.7B starts from
    "4b": (2560, 36, 32, 8, 128, 9728, 151936),  # Qwen3-4B
    "wide": (1024, 6, 16, 16, 64, 1024, 2048),  # one K/V head for each query head, as in LLaDA: caches outweigh weights
    "tiny": (128, 2, 4, 2, 32, 256, 1024),
}


def make_spec(shape: str, block_length: int) -> ModelSpec:
    hidden, layers, heads, kv_heads, head_dim, width, vocab = SHAPES[shape]
    return ModelSpec(
        family="sdar", architecture="SDARForCausalLM", vocab_size=vocab, embedding_rows=vocab, hidden_size=hidden,
        n_layers=layers, n_heads=heads, n_kv_heads=kv_heads, head_dim=head_dim, intermediate_size=width,
        rope_theta=1e6, norm_eps=1e-6, qkv_bias=False, qk_norm=True, tied_head=True, max_positions=32768,
        conventions=Conventions(
            mask_id=1, logit_shift=0, attention="block_causal", block_length=block_length,
            sub_block_length=block_length, grid_origin="zero", first_token_rule="predicted",
            kv_commit_rule="extra_pass", stop_ids=(0,), eos_id=0, pad_id=0,
        ),
    )  # fmt: skip


def write_checkpoint(folder: Path, shape: str, *, block_length: int = 16, seed: int = 0) -> Path:
    """SDAR layout in bfloat16; weights drawn so that activations keep their size through the layers."""
    spec = make_spec(shape, block_length)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    with torch.device("meta"):
        model = DiffusionTransformer(spec)
    name_of = FAMILIES["sdar"].tensor_name
    tensors = {}
    for role, parameter in model.state_dict().items():
        if role == "head.weight":
            continue  # tied
        if parameter.dim() == 1:
            value = torch.ones(parameter.shape)
        else:
            value = torch.randn(parameter.shape) * (0.05 if role == "embed.weight" else parameter.shape[1] ** -0.5)
        tensors[name_of(role)] = value.to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    to_config = FAMILIES["sdar"].to_config
    assert to_config is not None
    config = {"architectures": ["SDARForCausalLM"], **to_config(spec)}
    config |= {"mask_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(word_tokenizer(spec.vocab_size)))
    return folder


def word_tokenizer(vocab_size: int) -> dict[str, object]:
    """One word per id: `t17` is id 17."""
    specials = ["<|endoftext|>", "<|mask|>"]
    vocab = {word: i for i, word in enumerate(specials)} | {f"t{i}": i for i in range(2, vocab_size)}
    added = [
        {
            "id": i,
            "content": w,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, w in enumerate(specials)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t2"},
    }
