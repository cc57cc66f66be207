"""Masked NLL along denoising: the tokens of a block are revealed one by one, in a random order, and each one's negative
log-likelihood counts when it is revealed. Stored results, chosen pages and drift are what they are while decoding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sparse.retrieval import cache_kind

from dlm_edge.families.spec import ModelSpec
from dlm_edge.runtime.attention import AttentionSettings
from dlm_edge.runtime.blocks import Block, Canvas, Span
from dlm_edge.runtime.cache import CountedModel, largest_step_window, open_cache
from dlm_edge.runtime.step_model import StepModel


def block_nll(
    model: StepModel,
    spec: ModelSpec,
    window: NDArray[np.int64],
    attention: AttentionSettings,
    seed: int,
    *,
    stores: bool = True,
) -> tuple[float, float]:
    """(nats per token of the last block of `window`, density); the order of revealing follows from `seed`."""
    conventions = spec.conventions
    length = conventions.block_length
    prompt_len = len(window) - length
    canvas = Canvas(window[:prompt_len].tolist(), length, len(window), conventions.mask_id)
    block = Block(prompt_len, len(window), (Span(prompt_len, len(window)),))
    kind = cache_kind(conventions, stores)
    model.reset(len(window), attention, largest_step_window(kind, [block], len(window), conventions.logit_shift))
    counted = CountedModel(model, canvas, conventions, attention)
    cache = open_cache(kind, counted, conventions, refresh_every=None, prefill_chunk=512)
    cache.prefill(prompt_len)
    cache.start_block(block)
    total = 0.0
    for position in np.random.default_rng(seed).permutation(np.arange(prompt_len, len(window))):
        masked = canvas.masked(prompt_len, len(window))
        logits = np.array(list(cache.rows(masked)), np.float64)[list(masked).index(position)]
        logits[conventions.mask_id] = -np.inf  # as decoding has it
        total += float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[window[position]])
        canvas.commit(np.array([position]), window[[position]])
        counted.plan.filled(1)
    return total / length, counted.density.share
