"""A checkpoint with random weights and the shape of a real model: for speed, where real weights are not needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from dlm_edge.checkpoint.safetensors_writer import StoredTensor, write_safetensors
from dlm_edge.families import FAMILIES
from dlm_edge.families.roles import role_shapes
from dlm_edge.families.spec import Conventions, ModelSpec

SHAPES = {  # hidden, layers, heads, kv heads, head_dim, feed-forward, vocabulary
    "0.5b": (896, 24, 14, 2, 64, 4864, 151936),  # Qwen2.5-0.5B
    "0.8b": (1280, 24, 20, 20, 64, 3520, 126464),  # as wide and as deep as fits LLaDA's proportions
    "1.5b": (1536, 28, 12, 2, 128, 8960, 151936),  # Qwen2.5-1.5B
    "1.7b": (2048, 28, 16, 8, 128, 6144, 151936),  # Qwen3-1.7B, which SDAR-1.7B starts from
    "4b": (2560, 36, 32, 8, 128, 9728, 151936),  # Qwen3-4B
    "wide": (1024, 6, 16, 16, 64, 1024, 2048),  # one K/V head for each query head, as in LLaDA: caches outweigh weights
    "tiny": (128, 2, 4, 2, 32, 256, 1024),
}
ARCHITECTURES = {"sdar": "SDARForCausalLM", "dream": "DreamModel", "llada": "LLaDAModelLM"}
CHUNK_VALUES = 8 << 20  # that are in memory at once


def make_spec(shape: str, block_length: int, family: str = "sdar") -> ModelSpec:
    hidden, layers, heads, kv_heads, head_dim, width, vocab = SHAPES[shape]
    is_sdar, shift = family == "sdar", int(family == "dream")
    return ModelSpec(
        family=family, architecture=ARCHITECTURES[family], vocab_size=vocab, embedding_rows=vocab, hidden_size=hidden,
        n_layers=layers, n_heads=heads, n_kv_heads=kv_heads, head_dim=head_dim, intermediate_size=width,
        rope_theta=1e6, norm_eps=1e-6, qkv_bias=family == "dream", qk_norm=is_sdar, tied_head=family != "llada",
        max_positions=32768,
        conventions=Conventions(
            mask_id=1, logit_shift=1 if shift else 0, attention="block_causal" if is_sdar else "full",
            block_length=block_length, sub_block_length=block_length, grid_origin="zero" if is_sdar else "prompt_end",
            first_token_rule="previous_logit" if shift else "predicted",
            kv_commit_rule="extra_pass" if is_sdar else "approximate", stop_ids=(0,), eos_id=0, pad_id=0,
        ),
    )  # fmt: skip


def write_checkpoint(folder: Path, shape: str, *, block_length: int = 16, seed: int = 0, family: str = "sdar") -> Path:
    """The family's layout in bfloat16; weights drawn, some rows at a time, so that activations keep their size through
    the layers."""
    spec, generator = make_spec(shape, block_length, family), torch.Generator().manual_seed(seed)

    def values(role: str, size: tuple[int, ...]) -> Iterator[bytes]:
        rows = max(1, CHUNK_VALUES // size[-1])
        for first in range(0, size[0], rows):
            piece = torch.empty(min(rows, size[0] - first), *size[1:])
            if role.endswith(".bias"):
                piece.normal_(0, 0.02, generator=generator)
            elif len(size) == 1:
                piece.fill_(1)
            else:
                piece.normal_(0, 0.05 if role == "embed.weight" else size[1] ** -0.5, generator=generator)
            yield piece.bfloat16().view(torch.int16).numpy().tobytes()

    folder.mkdir(parents=True, exist_ok=True)
    chosen = FAMILIES[family]
    tensors = [
        StoredTensor(chosen.tensor_name(role), "BF16", size, values(role, size))
        for role, size in role_shapes(spec).items()
    ]
    write_safetensors(folder / "model.safetensors", tensors)
    assert chosen.to_config is not None
    config = {"architectures": [ARCHITECTURES[family]], **chosen.to_config(spec)}
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
