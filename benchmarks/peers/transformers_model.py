"""The job's weights in a stock transformers model, for the packages that quantize only those.

`Qwen3ForCausalLM` has the layout of SDAR, `LlamaForCausalLM` that of LLaDA. By themselves both are causal, which is
what a user of these packages gets; with the attention masks of a batch they compute what our module computes.
"""

from __future__ import annotations

import torch
from peer_job import MaskedBatch, PeerJob
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

NAMES = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def module_name(role: str) -> str:
    """`layers.0.q` -> `model.layers.0.self_attn.q_proj`."""
    outer = {"embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
    if role in outer:
        return outer[role]
    layers, i, name = role.split(".")
    return f"model.{layers}.{i}.{NAMES[name]}"


def transformers_model(job: PeerJob) -> PreTrainedModel:
    spec = job.spec
    config_class, model_class = (Qwen3Config, Qwen3ForCausalLM) if spec.qk_norm else (LlamaConfig, LlamaForCausalLM)
    config = config_class(
        vocab_size=spec.embedding_rows,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.n_layers,
        num_attention_heads=spec.n_heads,
        num_key_value_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        rms_norm_eps=spec.norm_eps,
        rope_theta=spec.rope_theta,
        max_position_embeddings=spec.max_positions,
        tie_word_embeddings=spec.tied_head,
        eos_token_id=spec.conventions.eos_id,
        pad_token_id=spec.conventions.pad_id,
        bos_token_id=spec.conventions.bos_id,
        use_cache=False,
        attn_implementation="sdpa",
        dtype="float32",
    )
    model = model_class(config)
    state = {}
    for name, weight in job.weights.items():
        role, leaf = name.rsplit(".", 1)
        state[f"{module_name(role)}.{leaf}"] = weight
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise SystemExit(f"transformers has other weights: {missing} missing, {unexpected} unexpected")
    if spec.tied_head:
        model.tie_weights()
    return model.float().eval().requires_grad_(False)


def reloaded(job: PeerJob, folder: str) -> PreTrainedModel:
    """The same, saved into `folder` and read again, for packages that look at the files of a model."""
    model = transformers_model(job)
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, dtype=torch.float32).eval()


def unused_tokenizer() -> PreTrainedTokenizerFast:
    """For packages that ask for one though the data are token ids already."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()))


def masked_inputs(batch: MaskedBatch) -> dict[str, Tensor]:
    """Keyword arguments of the model for one batch: ids, positions and the additive 4-D mask."""
    bias = torch.zeros(batch.mask.shape).masked_fill(~batch.mask, torch.finfo(torch.float32).min)
    rows = len(batch.ids)
    return {
        "input_ids": batch.ids,
        "position_ids": batch.positions.expand(rows, -1),
        "attention_mask": bias.expand(rows, 1, -1, -1),
    }


def linear_weights(model: nn.Module, job: PeerJob) -> dict[str, Tensor]:
    return {role: model.get_submodule(module_name(role)).weight for role in job.roles}


def norm_weights(model: nn.Module, job: PeerJob) -> dict[str, Tensor]:
    """Gains of the norms in front of linears, for packages that scale them."""
    roles = [f"layers.{i}.{name}" for i in range(job.spec.n_layers) for name in ("attn_norm", "mlp_norm")]
    return {role: model.get_submodule(module_name(role)).weight for role in roles}
