"""Token editing (LLaDA 2.1, Bie et al. 2026, arXiv 2602.08676): fill masks, and mend tokens that are filled already.

Every step looks at all slots of the block. Mask to token: masked slots at or above `threshold` are committed, or the
`min_commit` surest. Token to token: a generated token of the block is replaced where the model would now say another
one with a probability above `edit_threshold`. Without masks the block is polished until a step changes nothing, at most
`max_post_steps` times, so two tokens that replace each other for ever end there. A text settles with its block.

The defaults are the recommended "quality" setting (0.7, 0.5, 16); "speed" is threshold 0.5 without edits. Above 1
`edit_threshold` leaves the sampler `threshold`, step for step. The prompt and given tokens are never edited.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

from dlm_edge.runtime.samplers.contract import (
    Commits,
    Count,
    Needs,
    Sampler,
    SamplerOptions,
    SelectState,
    Threshold,
    commit_rows,
    most_confident_first,
)
from dlm_edge.runtime.scores import Scores


class Options(SamplerOptions, frozen=True):
    threshold: Threshold = 0.7  # confidence from which a mask is filled
    edit_threshold: Threshold = 0.5  # confidence above which a token is replaced; from 1 on: never
    max_post_steps: Count = 16  # without a mask left
    min_commit: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)] = 1  # masks that every step fills


def select(scores: Scores, state: SelectState, options: Options) -> Commits:
    """The memory counts the steps without masks."""
    canvas, start, end = state.canvas, *state.span
    is_masked = canvas.is_masked[scores.positions] & (scores.positions >= start) & (scores.positions < end)
    masks = np.flatnonzero(is_masked)
    filled = is_masked & (scores.confidence >= options.threshold)
    if filled.sum() < options.min_commit:
        order = most_confident_first(scores)
        filled[order[is_masked[order]][: options.min_commit]] = True
    differs = canvas.ids[scores.positions] != scores.ids
    edited = ~canvas.is_masked[scores.positions] & differs & (scores.confidence > options.edit_threshold)
    polished = 0 if masks.size else (state.memory or 0) + 1
    return commit_rows(scores, np.flatnonzero(filled | edited), polished)


def polishes(state: SelectState, options: Options) -> bool:
    return options.edit_threshold < 1 and state.n_masked > 0 and (state.memory or 0) < options.max_post_steps


def max_steps(n_masked: int, options: Options) -> int:
    return n_masked + options.max_post_steps


SAMPLER = Sampler(
    name="edit",
    select=select,
    options=Options,
    needs=Needs(needs_placed=True, can_edit=True, chooses_ids=True),
    max_steps=max_steps,
    polishes=polishes,
)
