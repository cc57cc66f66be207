"""Dream, Dream-Coder and DiffuCoder: Qwen2.5 made bidirectional, with the autoregressive shift kept."""

from __future__ import annotations

from typing import Any

from dlm_edge.families import qwen_layout
from dlm_edge.families.family import Family
from dlm_edge.families.settings import Settings
from dlm_edge.families.spec import Conventions, ModelSpec
from dlm_edge.families.token_ids import ReleasedIds, read_ids

RELEASED = ReleasedIds(mask=151666, eos=151643, pad=151643, stops=(151643, 151645), bos=151643)
DEFAULT_BLOCK = 32  # a decoding choice: full attention knows no blocks


def read_spec(settings: Settings) -> ModelSpec:
    dimensions = qwen_layout.read_dimensions(settings, default_theta=1e6)
    block = settings.integer("block_length", 1, 4096, default=DEFAULT_BLOCK)
    conventions = Conventions(
        logit_shift=1,
        attention="full",
        block_length=block,
        sub_block_length=block,
        grid_origin="prompt_end",
        first_token_rule="previous_logit",
        kv_commit_rule="approximate",
        **read_ids(settings, RELEASED, dimensions["embedding_rows"]),
    )
    return ModelSpec(
        family="dream", architecture="DreamModel", qkv_bias=True, qk_norm=False, conventions=conventions, **dimensions
    )


def to_config(spec: ModelSpec) -> dict[str, Any]:
    return qwen_layout.dimensions_config(spec) | {
        "model_type": "Dream",
        "block_length": spec.conventions.block_length,
    }


DREAM = Family(
    name="dream",
    architectures=("DreamModel",),
    model_types=("Dream",),
    read_spec=read_spec,
    tensor_name=qwen_layout.tensor_name,
    to_config=to_config,
)
