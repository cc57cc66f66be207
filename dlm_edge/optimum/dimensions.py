"""The dimensions of the step graph under one set of names, whatever a family's config.json calls them."""

from __future__ import annotations

from optimum.utils import NormalizedTextConfigWithGQA

from dlm_edge.families import fast_dllm_v2, sdar
from dlm_edge.runtime.step_model import FULL_ATTENTION


class StepDimensions(NormalizedTextConfigWithGQA):
    """`num_layers`, `num_attention_heads`, `num_key_value_heads`, `head_dim`, `vocab_size` and `attn_block`.

    The upper-case attributes hold the config's key for each; `with_args` replaces them per family. Keys that a
    config may leave out have the default that the family's own reader gives them.
    """

    HEAD_DIM = "head_dim"
    BLOCK_LENGTH = ""  # the key of the attention block; empty: full attention
    DEFAULT_BLOCK_LENGTH = 0

    @property
    def num_key_value_heads(self) -> int:
        return self.optional("num_key_value_heads", self.num_attention_heads)

    @property
    def head_dim(self) -> int:
        return self.optional("head_dim", self.hidden_size // self.num_attention_heads)

    @property
    def attn_block(self) -> int:
        if not self.BLOCK_LENGTH:
            return FULL_ATTENTION
        return self.optional("block_length", self.DEFAULT_BLOCK_LENGTH)

    def optional(self, name: str, default: int) -> int:
        return int(self.__getattr__(name)) if self.has_attribute(name) else default


LLADA_DIMENSIONS = StepDimensions.with_args(
    num_layers="n_layers",
    hidden_size="d_model",
    num_attention_heads="n_heads",
    num_key_value_heads="n_kv_heads",
)
DREAM_DIMENSIONS = StepDimensions.with_args()
SDAR_DIMENSIONS = StepDimensions.with_args(block_length="block_size", default_block_length=sdar.DEFAULT_BLOCK)
FAST_DLLM_V2_DIMENSIONS = StepDimensions.with_args(
    block_length="bd_size", default_block_length=fast_dllm_v2.DEFAULT_BLOCK
)
