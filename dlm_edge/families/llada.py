"""LLaDA, LLaDA-1.5 and iLLaDA (ML-GSAI): bidirectional, OLMo-style config keys, no shift."""

from __future__ import annotations

from typing import Any

from dlm_edge.families.family import Family
from dlm_edge.families.settings import Settings
from dlm_edge.families.spec import Conventions, ModelSpec
from dlm_edge.families.token_ids import ReleasedIds, read_ids

RELEASED = ReleasedIds(mask=126336, eos=126081, pad=126081, stops=(126081, 126348), bos=126080)
DEFAULT_BLOCK = 32  # a decoding choice: full attention knows no blocks

LAYER_NAMES = {
    "attn_norm": "attn_norm",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "attn_out",
    "mlp_norm": "ff_norm",
    "gate": "ff_proj",
    "up": "up_proj",
    "down": "ff_out",
}
TOP_NAMES = {
    "embed.weight": "model.transformer.wte.weight",
    "final_norm.weight": "model.transformer.ln_f.weight",
    "head.weight": "model.transformer.ff_out.weight",  # not to be confused with ff_out of a block
}
# Values that leave the computation as it is implemented; every other value is refused.
IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "activation_type": ("silu",),
    "block_type": ("llama",),
    "layer_norm_type": ("rms",),
    "rope": (True,),
    "alibi": (False,),
    "include_bias": (False,),
    "bias_for_layer_norm": (False,),
    "layer_norm_with_affine": (True,),
    "attention_layer_norm": (False,),
    "multi_query_attention": (False,),
    "block_group_size": (1,),
    "clip_qkv": (),
    "scale_logits": (False,),
    "input_emb_norm": (False,),
    "rope_scaling": (),
    "sliding_window": (),
    "num_experts": (0,),
    "quantization_config": (),
}


def tensor_name(role: str) -> str:
    if role in TOP_NAMES:
        return TOP_NAMES[role]
    _, layer, part, leaf = role.split(".")
    return f"model.transformer.blocks.{layer}.{LAYER_NAMES[part]}.{leaf}"


def read_spec(settings: Settings) -> ModelSpec:
    settings.only_forms(IMPLEMENTED)
    hidden = settings.integer("d_model", 8, 65536)
    n_heads = settings.integer("n_heads", 1, 1024)
    n_kv_heads = settings.integer("n_kv_heads", 1, 1024, default=n_heads)
    if n_heads % n_kv_heads:
        raise settings.wrong("n_kv_heads", n_kv_heads, f"a divisor of n_heads {n_heads}")
    if hidden % n_heads or hidden // n_heads % 2:
        raise settings.wrong("d_model", hidden, f"an even multiple of n_heads {n_heads}")
    ids = settings.integer("vocab_size", 4, 1 << 22)
    rows = settings.integer("embedding_size", ids, 1 << 22, default=ids)
    default_width = settings.integer("mlp_ratio", 1, 64, default=4) * hidden
    block = settings.integer("block_length", 1, 4096, default=DEFAULT_BLOCK)
    conventions = Conventions(
        logit_shift=0,
        attention="full",
        block_length=block,
        sub_block_length=block,
        grid_origin="prompt_end",
        first_token_rule="predicted",
        kv_commit_rule="approximate",
        **read_ids(settings, RELEASED, rows),
    )
    return ModelSpec(
        family="llada",
        architecture="LLaDAModelLM",
        vocab_size=min(ids, settings.produced_rows or ids),
        embedding_rows=rows,
        hidden_size=hidden,
        n_layers=settings.integer("n_layers", 1, 1024),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=hidden // n_heads,
        intermediate_size=settings.integer("mlp_hidden_size", 8, 1 << 20, default=default_width),
        rope_theta=settings.number("rope_theta", 1.0, 1e12, default=500000.0),
        norm_eps=settings.number("rms_norm_eps", 1e-12, 0.1, default=1e-5),
        qkv_bias=settings.flag("include_qkv_bias", default=False),
        qk_norm=False,
        tied_head=settings.flag("weight_tying", default=False),
        max_positions=settings.integer("max_sequence_length", 1, 1 << 24, default=4096),
        conventions=conventions,
    )


def to_config(spec: ModelSpec) -> dict[str, Any]:
    ids = spec.conventions
    return {
        "architectures": [spec.architecture],
        "model_type": "llada",
        "activation_type": "silu",
        "alibi": False,
        "attention_layer_norm": False,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": spec.hidden_size,
        "embedding_size": spec.embedding_rows,
        "include_bias": False,
        "include_qkv_bias": spec.qkv_bias,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "max_sequence_length": spec.max_positions,
        "mlp_hidden_size": spec.intermediate_size,
        "n_heads": spec.n_heads,
        "n_kv_heads": spec.n_kv_heads,
        "n_layers": spec.n_layers,
        "rms_norm_eps": spec.norm_eps,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": spec.rope_theta,
        "scale_logits": False,
        "torch_dtype": "bfloat16",
        "vocab_size": spec.embedding_rows,
        "weight_tying": spec.tied_head,
        "block_length": ids.block_length,
        "mask_token_id": ids.mask_id,
        "eos_token_id": ids.eos_id,
        "pad_token_id": ids.pad_id,
        "bos_token_id": ids.bos_id,
    }


LLADA = Family(
    name="llada",
    architectures=("LLaDAModelLM",),
    model_types=("llada",),
    read_spec=read_spec,
    tensor_name=tensor_name,
    to_config=to_config,
)
