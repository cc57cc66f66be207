"""Think coarse, critic fine (TCCF, Lu et al. 2026, arXiv 2602.09555): parallel thinking, careful answers.

While the text is thinking, blocks are decoded by `bacd`. Once the thinking section is closed, the answer is decoded
one token per selection from left to right, which is the paper's block of length 1 without changing the blocks that
the model was trained for. What stage a block belongs to follows from the text before its first masked slot, prompt
included, so a section that closes inside a block is seen from the next block on.

The last marker of that text decides. Where the end marker is the last one, the answer has begun: the model has
closed its section, or the template did so for it (`<think>\\n\\n</think>`, thinking switched off). In a conversation
whose earlier answers keep their sections, it is fine until the model opens a new one, which is the careful side.
Where the start marker is the last one, or none has appeared at all, the stage is coarse: such a text may still
think, and one that never closes a section has no answer to be told apart and is decoded by `bacd` as a whole.

Markers that the vocabulary has no token for are looked for as the tokens of their plain text, and are overlooked
where the model spells them with other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

from dlm_edge.runtime.samplers import bacd
from dlm_edge.runtime.samplers.contract import Positions, Sampler, SelectState

Marker = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class Options(bacd.Options, frozen=True):
    think_start: Marker = "<think>"
    think_end: Marker = "</think>"


def spans(state: SelectState, options: Options) -> list[tuple[int, int]] | None:
    """Single slots in the answer; None, which keeps the family's sub-blocks, elsewhere."""
    masked = state.canvas.masked(*state.block)
    if not masked.size or not is_answer(state, int(masked[0])):
        return None
    return [(at, at + 1) for at in masked.tolist()]


def is_answer(state: SelectState, end: int) -> bool:
    before = state.canvas.ids[:end]
    return last_place(before, state.tokens["think_end"]) > last_place(before, state.tokens["think_start"])


def last_place(ids: Positions, marker: Sequence[int]) -> int:
    """Where the marker begins for the last time; -1 if nowhere."""
    if len(ids) < len(marker):
        return -1
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(marker))
    found = np.flatnonzero((windows == np.array(marker)).all(axis=1))
    return int(found[-1]) if found.size else -1


SAMPLER = Sampler(
    name="tccf",
    select=bacd.select,
    options=Options,
    spans=spans,
    texts={"think_start": "marker", "think_end": "marker"},
)
