"""Fast-dLLM v2 (NVlabs): Qwen2.5 with block-causal attention, the shift kept, blocks decoded in sub-blocks."""

from __future__ import annotations

from typing import Any

from dlm_edge.families import qwen_layout
from dlm_edge.families.family import Family
from dlm_edge.families.settings import Settings
from dlm_edge.families.spec import Conventions, ModelSpec
from dlm_edge.families.token_ids import ReleasedIds, read_ids

RELEASED = ReleasedIds(mask=151665, eos=151645, pad=151643, stops=(151645,), bos=151643)
DEFAULT_BLOCK, DEFAULT_SUB_BLOCK = 32, 8


def read_spec(settings: Settings) -> ModelSpec:
    dimensions = qwen_layout.read_dimensions(settings, default_theta=1e6)
    block = settings.integer("bd_size", 1, 4096, default=DEFAULT_BLOCK)
    # Released configs leave the sub-block to an argument of generate(), under this name.
    sub_block = settings.integer("small_block_size", 1, block, default=min(DEFAULT_SUB_BLOCK, block))
    if block % sub_block:
        raise settings.wrong("bd_size", block, f"a multiple of the sub-block length {sub_block}")
    conventions = Conventions(
        logit_shift=1,
        attention="block_causal",
        block_length=block,
        sub_block_length=sub_block,
        grid_origin="zero",
        first_token_rule="previous_logit",
        kv_commit_rule="extra_pass",
        **read_ids(settings, RELEASED, dimensions["embedding_rows"]),
    )
    return ModelSpec(
        family="fast_dllm_v2",
        architecture="Fast_dLLM_QwenForCausalLM",
        qkv_bias=True,
        qk_norm=False,
        conventions=conventions,
        **dimensions,
    )


def to_config(spec: ModelSpec) -> dict[str, Any]:
    return qwen_layout.dimensions_config(spec) | {
        "model_type": "Fast_dLLM_Qwen",
        "bd_size": spec.conventions.block_length,
        "small_block_size": spec.conventions.sub_block_length,
    }


FAST_DLLM_V2 = Family(
    name="fast_dllm_v2",
    architectures=("Fast_dLLM_QwenForCausalLM",),
    model_types=("Fast_dLLM_Qwen",),
    read_spec=read_spec,
    tensor_name=qwen_layout.tensor_name,
    to_config=to_config,
)
