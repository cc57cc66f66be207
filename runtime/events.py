"""What a running job reports. Committed text only ever grows; the canvas is replaced by every new frame."""

from __future__ import annotations

from typing import Literal

import msgspec

StopReason = Literal["eos", "stop", "length", "cancelled"]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What one generation gave and took. Times are wall time, from when the engine took the job up."""

    text: str
    token_ids: list[int]  # before the first stop id
    prompt_tokens: int
    new_tokens: int
    stop_reason: StopReason
    steps: int
    forward_passes: int  # prefill, steps and the passes over finished blocks
    guide_passes: int = 0  # of the second model, where one supervises
    steps_per_token: float | None  # forward passes per generated token; None without one
    prefill_seconds: float
    prefill_passes: int
    reused_tokens: int  # of the prompt, whose keys and values an earlier request or a prompt cache had left
    seconds: float
    effective_tokens_per_s: float
    blocks: int
    density: float  # share of the prefix K/V (sparsed: pairs of blocks) that steps read, page bounds included; 1: dense
    active_rows: float  # share of the steps' rows that attended to the prefix afresh
    pages_read: float  # by a step with a prefix, of each layer and K/V head; without sparse attention the prefix is one
    seed: int


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    queued: int  # jobs that wait
    running: int  # in flight
    parallel: int  # that may be
    weight_bytes: int  # of the guide, too
    working_bytes: int  # of caches and scores, also those kept for a later job
    memory_budget: int | None


class Cell(msgspec.Struct, frozen=True):
    """One slot of the canvas: a token that is placed, or a mask (id and text None), and how sure the model is."""

    token_id: int | None
    text: str | None
    confidence: float


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    prompt_tokens: int
    max_new_tokens: int
    seed: int


class Text(msgspec.Struct, frozen=True, kw_only=True, tag="text"):
    """Committed: append it. Always whole characters."""

    text: str


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag="frame"):
    """Provisional: the slots after the committed text, up to the end of the present block. Replace the last one."""

    step: int
    block: int
    n_blocks: int
    committed_tokens: int
    cells: list[Cell]


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    result: Result


Event = Started | Text | Frame | Finished
