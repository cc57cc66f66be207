"""Passes as the loop makes them: over a whole text without a cache, and of one block over a cached text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dlm_edge.runtime import Engine
from dlm_edge.runtime.scores import Sampling, ScoreReducer
from dlm_edge.runtime.sequence_memory import NO_IDS
from dlm_edge.runtime.step_model import FULL_ATTENTION

from .models import BLOCK_LENGTH


def random_ids(engine: Engine, length: int, seed: int = 0) -> NDArray[np.int64]:
    """None of the ids that mean something to the engine."""
    conventions = engine.spec.conventions
    usable = np.setdiff1d(np.arange(engine.spec.vocab_size), [conventions.mask_id, *conventions.stop_ids])
    return np.random.default_rng(seed).choice(usable, length).astype(np.int64)


def whole_pass(engine: Engine, positions: int, *, all_logits: bool) -> Callable[[], object]:
    """Of a text whose last block is masked; logits of that block's rows, or of all. The engine must have no job in flight."""
    model, ids = engine.parts.model, random_ids(engine, positions)
    ids[-BLOCK_LENGTH:] = engine.spec.conventions.mask_id
    rows = np.arange(0 if all_logits else positions - BLOCK_LENGTH, positions)
    shift = engine.spec.conventions.logit_shift
    rows = rows if all_logits else rows - shift

    def run() -> object:
        model.reset(positions)
        return model.run(ids, 0, 0, FULL_ATTENTION, rows)

    return run


def block_step(engine: Engine, prompt: int) -> Callable[[], object]:
    """A step of the block behind the prompt, all of it masked, over the stored keys of everything; with its scores."""
    model, length = engine.parts.model, prompt + BLOCK_LENGTH
    ids, scorer = random_ids(engine, length), ScoreReducer(engine.spec.conventions.mask_id, Sampling())
    ids[prompt:] = engine.spec.conventions.mask_id
    rows = np.arange(BLOCK_LENGTH)
    model.reset(length)
    model.run(ids, 0, 0, FULL_ATTENTION, NO_IDS, stored_rows=length)
    model.store(0, length)

    def run() -> object:
        logits = model.run(ids[prompt:], prompt, length, FULL_ATTENTION, rows)
        return scorer.reduce(list(logits), prompt + rows, 0)

    return run
