"""SDAR and TraDo (JetAstra, Gen-Verse): Qwen3 with block-causal attention on a grid from position 0."""

from __future__ import annotations

from typing import Any

from dlm_edge.families import qwen_layout
from dlm_edge.families.family import Family
from dlm_edge.families.settings import Settings
from dlm_edge.families.spec import Conventions, ModelSpec
from dlm_edge.families.token_ids import ReleasedIds, read_ids

RELEASED = ReleasedIds(mask=151669, eos=151643, pad=151643, stops=(151645, 151643), bos=151643)
DEFAULT_BLOCK = 4


def read_spec(settings: Settings) -> ModelSpec:
    settings.only("attention_bias", False)  # in Qwen3 it would put a bias on the output projection too
    dimensions = qwen_layout.read_dimensions(settings, default_theta=1e6)
    block = settings.integer("block_size", 1, 4096, default=DEFAULT_BLOCK)
    conventions = Conventions(
        logit_shift=0,
        attention="block_causal",
        block_length=block,
        sub_block_length=block,
        grid_origin="zero",
        first_token_rule="predicted",
        kv_commit_rule="extra_pass",
        **read_ids(settings, RELEASED, dimensions["embedding_rows"]),
    )
    return ModelSpec(
        family="sdar",
        architecture="SDARForCausalLM",
        qkv_bias=False,
        qk_norm=True,
        conventions=conventions,
        **dimensions,
    )


def to_config(spec: ModelSpec) -> dict[str, Any]:
    return qwen_layout.dimensions_config(spec) | {
        "model_type": "sdar",
        "head_dim": spec.head_dim,
        "attention_bias": False,
        "block_size": spec.conventions.block_length,
    }


SDAR = Family(
    name="sdar",
    architectures=("SDARForCausalLM",),
    model_types=("sdar",),
    read_spec=read_spec,
    tensor_name=qwen_layout.tensor_name,
    to_config=to_config,
)
