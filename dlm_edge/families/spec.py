"""What one checkpoint is: its dimensions and the convention bits that decide whether it decodes at all."""

from __future__ import annotations

from typing import Literal

import msgspec

AttentionPattern = Literal["full", "block_causal", "causal"]


class Conventions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the family decodes. Written into every artefact, never guessed from a name at run time."""

    mask_id: int
    logit_shift: Literal[0, 1]  # 1: the logits of position i predict token i + 1
    attention: AttentionPattern
    block_length: int  # of the grid for block-causal attention, of the decoding default for full attention
    sub_block_length: int  # decoded left to right inside a block; equal to block_length when there are none
    grid_origin: Literal["zero", "prompt_end"]
    first_token_rule: Literal["predicted", "previous_logit"]
    kv_commit_rule: Literal["extra_pass", "approximate"]
    noise: Literal["absorbing"] = "absorbing"
    stop_ids: tuple[int, ...]
    eos_id: int
    pad_id: int
    bos_id: int | None = None


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Dimensions of a pre-norm transformer with RoPE, RMSNorm and a gated SiLU feed-forward."""

    family: str
    architecture: str
    vocab_size: int  # ids that may be produced; rows above it are padding
    embedding_rows: int
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    tied_head: bool
    max_positions: int
    conventions: Conventions

    @property
    def q_width(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.n_kv_heads * self.head_dim

    def visible_end(self, position: int, origin: int = 0) -> int | None:
        """One past the last key that the query at `position` sees; None: every key there is."""
        pattern = self.conventions.attention
        if pattern == "full":
            return None
        length = 1 if pattern == "causal" else self.conventions.block_length
        return origin + ((position - origin) // length + 1) * length
