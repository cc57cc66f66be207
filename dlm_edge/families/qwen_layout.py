"""Config keys and tensor names that the families grown from Qwen2 and Qwen3 share."""

from __future__ import annotations

from typing import Any

from dlm_edge.errors import InputFileError
from dlm_edge.families.settings import Settings
from dlm_edge.families.spec import ModelSpec

LAYER_NAMES = {
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
TOP_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
# Values that leave the computation as it is implemented; every other value is refused.
IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "num_experts": (0,),
    "n_routed_experts": (0,),
    "num_local_experts": (0,),
    "partial_rotary_factor": (1, 1.0),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "quantization_config": (),
}


def tensor_name(role: str) -> str:
    if role in TOP_NAMES:
        return TOP_NAMES[role]
    _, layer, part, leaf = role.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{leaf}"


def read_dimensions(settings: Settings, *, default_theta: float) -> dict[str, Any]:
    """The fields of ModelSpec that are dimensions. Raises E-CONFIG for what is out of range or not implemented."""
    settings.only_forms(IMPLEMENTED)
    _check_layer_types(settings)
    hidden = settings.integer("hidden_size", 8, 65536)
    n_heads = settings.integer("num_attention_heads", 1, 1024)
    n_kv_heads = settings.integer("num_key_value_heads", 1, 1024, default=n_heads)
    rows = settings.integer("vocab_size", 4, 1 << 22)
    return {
        "hidden_size": hidden,
        "embedding_rows": rows,
        "vocab_size": min(rows, settings.produced_rows or rows),
        "n_layers": settings.integer("num_hidden_layers", 1, 1024),
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim(settings, hidden, n_heads, n_kv_heads),
        "intermediate_size": settings.integer("intermediate_size", 8, 1 << 20),
        "rope_theta": rope_theta(settings, default_theta),
        "norm_eps": settings.number("rms_norm_eps", 1e-12, 0.1, default=1e-6),
        "tied_head": settings.flag("tie_word_embeddings", default=False),
        "max_positions": settings.integer("max_position_embeddings", 1, 1 << 24, default=32768),
    }


def head_dim(settings: Settings, hidden: int, n_heads: int, n_kv_heads: int) -> int:
    """`head_dim` where the config has it, else hidden / heads; checked for grouping and for rotation in pairs."""
    if n_heads % n_kv_heads:
        raise settings.wrong("num_key_value_heads", n_kv_heads, f"a divisor of the {n_heads} attention heads")
    if not settings.has("head_dim") and hidden % n_heads:
        raise settings.wrong("hidden_size", hidden, f"a multiple of the {n_heads} attention heads")
    dim = settings.integer("head_dim", 2, 1024, default=hidden // n_heads or 1)
    if dim % 2 or dim < 2:
        raise settings.wrong("head_dim", dim, "an even number (positions are rotated in pairs)")
    return dim


def rope_theta(settings: Settings, default: float) -> float:
    """The rotary base, from `rope_theta`, `rope_parameters` or `rope_scaling`; only unscaled positions."""
    found = [settings.number("rope_theta", 1.0, 1e12, default=default)] if settings.has("rope_theta") else []
    for key in ("rope_parameters", "rope_scaling"):
        inner = settings.config.get(key)
        if inner is None:
            continue
        if not isinstance(inner, dict):
            raise settings.wrong(key, inner, "an object or null")
        kind = inner.get("rope_type", inner.get("type", "default"))
        if kind not in ("default", "none"):
            raise InputFileError(
                "E-CONFIG",
                f"config.json of {settings.name}: {key} has type {kind!r}, and scaled positions are not supported",
                "set it to null if the texts stay within the trained length",
            )
        nested = Settings(inner, settings.name)
        nested.only("partial_rotary_factor", 1, 1.0)
        if nested.has("rope_theta"):
            found.append(nested.number("rope_theta", 1.0, 1e12))
    if len(set(found)) > 1:
        raise settings.wrong("rope_theta", found, "one value, not several that differ")
    return found[0] if found else default


def _check_layer_types(settings: Settings) -> None:
    kinds = settings.config.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        raise settings.wrong("layer_types", kinds, "full_attention in every layer")


def dimensions_config(spec: ModelSpec) -> dict[str, Any]:
    """The inverse of `read_dimensions`: the config keys of the released checkpoints."""
    ids = spec.conventions
    return {
        "architectures": [spec.architecture],
        "hidden_act": "silu",
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "rope_scaling": None,
        "vocab_size": spec.embedding_rows,
        "tie_word_embeddings": spec.tied_head,
        "max_position_embeddings": spec.max_positions,
        "use_sliding_window": False,
        "torch_dtype": "bfloat16",
        "mask_token_id": ids.mask_id,
        "eos_token_id": ids.eos_id,
        "pad_token_id": ids.pad_id,
        "bos_token_id": ids.bos_id,
    }
