"""What the denoising loop takes and what it counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dlm_edge.runtime.attention import EXACT, AttentionSettings
from dlm_edge.runtime.cache import FREE_WINDOW
from dlm_edge.runtime.constraints.constraint import Constraint
from dlm_edge.runtime.samplers.contract import SamplerOptions
from dlm_edge.runtime.scores import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSettings:
    """Everything the loop needs to know about one request; ranges are checked in GenerateSettings."""

    gen_len: int
    block_length: int
    sub_block_length: int
    options: SamplerOptions = field(default_factory=SamplerOptions)  # of the sampler's own kind
    cache: str = "none"
    refresh_every: int | None = None  # approximate caches: None refreshes at the start of each block only
    cache_window: int = FREE_WINDOW  # freecache: positions before the block that every step computes anew
    sampling: Sampling = field(default_factory=Sampling)
    guidance: float = 0.0
    stop_ids: tuple[int, ...] = ()
    stop_texts: tuple[str, ...] = ()
    min_new_tokens: int = 0  # no stop id before
    prefill_chunk: int = 512  # positions per prefill pass
    attention: AttentionSettings = EXACT
    # Tokens given in advance, beyond gen_len too: offset after the prompt -> id.
    fixed: Mapping[int, int] = field(default_factory=dict)
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # ids that stand for the sampler's texts
    constraint: Constraint | None = None  # that the text meets whatever is committed when
    filter: Any = None  # weights of learn2pd's filter

    @property
    def steps(self) -> int | None:
        """Of the whole request; None: one token per step, or as the sampler decides."""
        found: int | None = getattr(self.options, "steps", None)
        return found


StopReason = Literal["eos", "stop", "length", "cancelled"]


@dataclass(slots=True)
class Stats:
    stop_reason: StopReason = "length"
    steps: int = 0  # selections
    forward_passes: int = 0  # runs of the model: prefill, steps and clean passes
    guide_passes: int = 0  # runs of the guide
    prefill_seconds: float = 0.0
    prefill_passes: int = 0
    reused_tokens: int = 0  # of the prompt, stored before the request began
    blocks: int = 0  # blocks begun that had something to fill
    density: float = 1.0  # of prefix K/V read by the steps, page bounds included; sparsed: of pairs of blocks
    active_rows: float = 1.0  # share of the steps' rows that attended to the prefix afresh
    pages_read: float = 0.0  # by a step with a prefix, of each layer and K/V head
