"""Config readers against the released configs, the names of the tensors, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from dlm_edge.errors import InputFileError
from dlm_edge.families import FAMILIES, find_family
from dlm_edge.families.roles import role_shapes
from dlm_edge.families.settings import Settings
from dlm_edge.families.spec import ModelSpec
from tests.tiny import FAMILY_NAMES, make_spec

# The keys of the released checkpoints that say what the model is, with their values.
LLADA_8B = {
    "architectures": ["LLaDAModelLM"], "model_type": "llada", "activation_type": "silu", "alibi": False,
    "alibi_bias_max": 8.0, "attention_dropout": 0.0, "attention_layer_norm": False, "bias_for_layer_norm": False,
    "block_group_size": 1, "block_type": "llama", "d_model": 4096, "embedding_size": 126464, "eos_token_id": 126081,
    "flash_attention": False, "include_bias": False, "include_qkv_bias": False, "input_emb_norm": False,
    "layer_norm_type": "rms", "layer_norm_with_affine": True, "mask_token_id": 126336, "max_sequence_length": 4096,
    "mlp_hidden_size": 12288, "mlp_ratio": 4, "multi_query_attention": None, "n_heads": 32, "n_kv_heads": 32,
    "n_layers": 32, "pad_token_id": 126081, "rms_norm_eps": 1e-05, "rope": True, "rope_full_precision": True,
    "rope_theta": 500000.0, "scale_logits": False, "vocab_size": 126464, "weight_tying": False,
}  # fmt: skip
DREAM_7B = {
    "architectures": ["DreamModel"], "model_type": "Dream", "hidden_act": "silu", "hidden_size": 3584,
    "intermediate_size": 18944, "mask_token_id": 151666, "max_position_embeddings": 131072, "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "pad_token_id": 151643, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False,
    "use_sliding_window": False, "vocab_size": 152064, "eos_token_id": 151643, "bos_token_id": 151643,
}  # fmt: skip
SDAR_4B = {
    "architectures": ["SDARForCausalLM"], "model_type": "sdar", "attention_bias": False, "block_size": 4,
    "eos_token_id": 151643, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560, "intermediate_size": 9728,
    "mask_token_id": 151669, "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 36,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
    "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
FAST_DLLM_7B = {
    "architectures": ["Fast_dLLM_QwenForCausalLM"], "model_type": "Fast_dLLM_Qwen", "bd_size": 32,
    "conplemenrary_mask": True, "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 3584,
    "intermediate_size": 18944, "max_position_embeddings": 32768, "num_attention_heads": 28, "num_hidden_layers": 28,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0,
    "sliding_window": 131072, "use_sliding_window": False, "tie_word_embeddings": False, "vocab_size": 152064,
}  # fmt: skip
RELEASED = {"llada": LLADA_8B, "dream": DREAM_7B, "sdar": SDAR_4B, "fast_dllm_v2": FAST_DLLM_7B}


def read(config: dict[str, Any], **beside: Any) -> ModelSpec:
    return find_family(config, "test").read_spec(Settings(config, "test", **beside))


def test_dimensions_of_the_released_checkpoints() -> None:
    specs = {name: read(config) for name, config in RELEASED.items()}
    found = {
        n: (s.hidden_size, s.n_layers, s.n_heads, s.n_kv_heads, s.head_dim, s.intermediate_size)
        for n, s in specs.items()
    }
    assert found == {
        "llada": (4096, 32, 32, 32, 128, 12288),
        "dream": (3584, 28, 28, 4, 128, 18944),
        "sdar": (2560, 36, 32, 8, 128, 9728),
        "fast_dllm_v2": (3584, 28, 28, 4, 128, 18944),
    }
    assert {n: (s.qkv_bias, s.qk_norm, s.tied_head, s.rope_theta, s.norm_eps) for n, s in specs.items()} == {
        "llada": (False, False, False, 5e5, 1e-5),
        "dream": (True, False, False, 1e6, 1e-6),
        "sdar": (False, True, False, 1e6, 1e-6),
        "fast_dllm_v2": (True, False, False, 1e6, 1e-6),
    }


def test_conventions_of_the_released_checkpoints() -> None:
    rows: dict[str, tuple[Any, ...]] = {}
    for name, config in RELEASED.items():
        c = read(config).conventions
        rows[name] = (c.mask_id, c.logit_shift, c.attention, c.block_length, c.sub_block_length, c.grid_origin)
        rows[name] += (c.first_token_rule, c.kv_commit_rule, set(c.stop_ids), c.eos_id, c.pad_id)
    full, causal = ("approximate",), ("extra_pass",)
    assert rows == {
        "llada": (126336, 0, "full", 32, 32, "prompt_end", "predicted", *full, {126081, 126348}, 126081, 126081),
        "dream": (151666, 1, "full", 32, 32, "prompt_end", "previous_logit", *full, {151643, 151645}, 151643, 151643),
        "sdar": (151669, 0, "block_causal", 4, 4, "zero", "predicted", *causal, {151643, 151645}, 151643, 151643),
        "fast_dllm_v2": (151665, 1, "block_causal", 32, 8, "zero", "previous_logit", *causal, {151645}, 151645, 151643),
    }


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_ids_that_the_config_lacks_are_the_released_ones(family: str) -> None:
    bare = {k: v for k, v in RELEASED[family].items() if not k.endswith("_token_id")}
    ours, full = read(bare).conventions, read(RELEASED[family]).conventions
    assert (ours.mask_id, ours.eos_id, ours.pad_id, ours.stop_ids) == (
        full.mask_id,
        full.eos_id,
        full.pad_id,
        full.stop_ids,
    )


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_spec_and_config_are_inverse(family: str) -> None:
    for spec in (make_spec(family), make_spec(family, tied=True), read(RELEASED[family])):
        assert read(FAMILIES[family].to_config(spec), produced_rows=spec.vocab_size) == spec


def test_ids_come_from_generation_config_and_tokenizer() -> None:
    config = FAMILIES["sdar"].to_config(make_spec("sdar"))
    for key in ("mask_token_id", "eos_token_id", "pad_token_id"):
        config.pop(key)
    read_ids = read(config, beside={"eos_token_id": [7, 9], "mask_token_id": None}, tokenizer_mask_id=11).conventions
    assert (read_ids.eos_id, read_ids.stop_ids, read_ids.pad_id, read_ids.mask_id) == (7, (7, 9), 7, 11)


def test_other_vocabularies_get_no_released_stop_ids() -> None:
    config = SDAR_4B | {"eos_token_id": 5, "mask_token_id": 6}
    conventions = read(config).conventions
    assert (conventions.stop_ids, conventions.pad_id) == ((5,), 5)


def test_a_mask_token_that_contradicts_the_config_is_refused() -> None:
    with pytest.raises(InputFileError) as refused:
        read(SDAR_4B, tokenizer_mask_id=3)
    assert refused.value.code == "E-TOK"


def test_produced_ids_end_with_the_tokenizer() -> None:
    spec = read(LLADA_8B, produced_rows=126349)
    assert (spec.vocab_size, spec.embedding_rows) == (126349, 126464)
    assert read(LLADA_8B | {"vocab_size": 126400}).vocab_size == 126400


def test_dispatch() -> None:
    assert find_family({"model_type": "Dream"}, "x").name == "dream"
    assert find_family({"architectures": ["SDARForCausalLM"], "model_type": "qwen3"}, "x").name == "sdar"
    for config in (
        {"architectures": ["LLaDAMoEModelLM"], "model_type": "llada"},
        {"model_type": "dream"},
        {},
        {"architectures": [7]},
    ):
        with pytest.raises(InputFileError, match="known: LLaDAModelLM.*dlm_edge/families") as refused:
            find_family(config, "x")
        assert refused.value.code == "E-ARCH"


def test_tensor_names() -> None:
    llada, qwen = FAMILIES["llada"].tensor_name, FAMILIES["dream"].tensor_name
    assert llada("head.weight") == "model.transformer.ff_out.weight"
    assert llada("layers.7.down.weight") == "model.transformer.blocks.7.ff_out.weight"
    assert llada("layers.7.gate.weight") == "model.transformer.blocks.7.ff_proj.weight"
    assert llada("layers.7.o.weight") == "model.transformer.blocks.7.attn_out.weight"
    assert qwen("layers.3.q.bias") == "model.layers.3.self_attn.q_proj.bias"
    assert qwen("layers.3.mlp_norm.weight") == "model.layers.3.post_attention_layernorm.weight"
    assert FAMILIES["sdar"].tensor_name("layers.3.k_norm.weight") == "model.layers.3.self_attn.k_norm.weight"


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_role_has_a_name_of_its_own(family: str) -> None:
    roles = list(role_shapes(make_spec(family, tied=False)))
    assert len({FAMILIES[family].tensor_name(role) for role in roles}) == len(roles)


ABSURD = [0, -1, 10**9, 2**31, 2**70, True, "32", 64.0, [], {}, float("inf")]
COUNTS = {
    "llada": ["d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden_size", "vocab_size", "max_sequence_length"],
    "sdar": [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "block_size",
    ],
    "dream": ["intermediate_size", "vocab_size", "max_position_embeddings"],
    "fast_dllm_v2": ["bd_size", "small_block_size"],
}


@pytest.mark.parametrize("value", ABSURD, ids=str)
@pytest.mark.parametrize(("family", "key"), [(family, key) for family, keys in COUNTS.items() for key in keys])
def test_absurd_numbers_are_refused_by_name(family: str, key: str, value: Any) -> None:
    with pytest.raises(InputFileError, match=f"test: {key} is") as refused:
        read(RELEASED[family] | {key: value})
    assert refused.value.code == "E-CONFIG"


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1e6", True])
@pytest.mark.parametrize(
    ("family", "key"), [("llada", "rope_theta"), ("dream", "rope_theta"), ("sdar", "rms_norm_eps")]
)
def test_absurd_fractions_are_refused_by_name(family: str, key: str, value: Any) -> None:
    with pytest.raises(InputFileError, match=f"test: {key} is") as refused:
        read(RELEASED[family] | {key: value})
    assert refused.value.code == "E-CONFIG"


NOT_IMPLEMENTED: list[tuple[str, dict[str, Any]]] = [
    *[("llada", {key: value}) for key, value in {
        "activation_type": "swiglu", "block_type": "sequential", "layer_norm_type": "default", "rope": False,
        "alibi": True, "include_bias": True, "bias_for_layer_norm": True, "layer_norm_with_affine": False,
        "attention_layer_norm": True, "multi_query_attention": True, "block_group_size": 2, "clip_qkv": 8.0,
        "scale_logits": True, "input_emb_norm": True, "rope_scaling": {"type": "linear"}, "num_experts": 64,
        "quantization_config": {"bits": 4}, "weight_tying": "false",
    }.items()],
    *[("dream", {key: value}) for key, value in {
        "hidden_act": "gelu", "mlp_bias": True, "use_sliding_window": True, "num_experts": 8,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_parameters": {"rope_type": "linear"},
        "partial_rotary_factor": 0.5, "layer_types": ["full_attention", "sliding_attention"],
        "quantization_config": {"quant_method": "gptq"}, "tie_word_embeddings": 1, "final_logit_softcapping": 30.0,
    }.items()],
    ("sdar", {"attention_bias": True}),
    ("sdar", {"rope_parameters": {"rope_theta": 5e5}}),
    ("sdar", {"rope_scaling": "linear"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "change"), NOT_IMPLEMENTED, ids=lambda v: v if isinstance(v, str) else next(iter(v))
)
def test_what_would_change_the_computation_is_refused(family: str, change: dict[str, Any]) -> None:
    with pytest.raises(InputFileError) as refused:
        read(RELEASED[family] | change)
    assert refused.value.code == "E-CONFIG"
    assert next(iter(change)) in refused.value.message or "rope_theta" in refused.value.message


CONTRADICTIONS: list[tuple[str, dict[str, Any]]] = [
    ("llada", {"n_heads": 24, "n_kv_heads": 24}),  # 4096 is no multiple
    ("llada", {"n_kv_heads": 5}),
    ("llada", {"embedding_size": 126400}),  # fewer rows than ids
    ("dream", {"num_attention_heads": 24}),
    ("dream", {"num_key_value_heads": 3}),
    ("sdar", {"head_dim": 127}),
    ("fast_dllm_v2", {"bd_size": 12}),  # no multiple of the sub-block
    ("sdar", {"mask_token_id": 151936}),
    ("sdar", {"mask_token_id": -1}),
    ("sdar", {"eos_token_id": 151669}),  # the mask id
    ("sdar", {"eos_token_id": [151643, 200000]}),
    ("sdar", {"eos_token_id": "151643"}),
    ("sdar", {"vocab_size": 1000}),  # the released ids lie outside
]


@pytest.mark.parametrize(("family", "change"), CONTRADICTIONS, ids=str)
def test_contradictions_are_refused(family: str, change: dict[str, Any]) -> None:
    with pytest.raises(InputFileError) as refused:
        read(RELEASED[family] | change)
    assert refused.value.code == "E-CONFIG"


def test_forms_that_mean_the_same_are_accepted() -> None:
    newer = {k: v for k, v in DREAM_7B.items() if k != "rope_theta"}
    newer |= {
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "layer_types": ["full_attention"] * 28,
    }
    assert read(newer) == read(DREAM_7B)
    assert read(LLADA_8B | {"n_kv_heads": None, "mlp_hidden_size": None, "mlp_ratio": 3}) == read(LLADA_8B)
