"""Static decoding written down a second time, as plainly as possible, to compare the loop and its caches with."""

from __future__ import annotations

import numpy as np

from dlm_edge.runtime.step_model import FULL_ATTENTION
from tests.runtime.toy import ToyModel


def plain_static(model: ToyModel, conventions, prompt, gen_len):
    """All gen_len tokens, one per step, everything recomputed; no stop, no sub-blocks beyond the family's."""
    full, shift, length = conventions.attention == "full", conventions.logit_shift, conventions.block_length
    origin = len(prompt) if conventions.grid_origin == "prompt_end" else 0
    attn_block = FULL_ATTENTION if full else length
    first = origin + (len(prompt) - origin) // length * length
    edges = list(range(first, len(prompt) + gen_len, length))
    canvas = list(prompt) + [conventions.mask_id] * (edges[-1] + length - len(prompt))
    model.reset(len(canvas))

    def predict(position, seen):
        logits = model.run(np.array(canvas[:seen]), 0, 0, attn_block, np.array([position - shift]))[0].astype(float)
        logits[conventions.mask_id] = -np.inf
        weights = np.exp(logits - logits.max())
        return float(weights.max() / weights.sum()), int(np.argmax(weights))

    for start in edges:
        end = start + length
        if conventions.first_token_rule == "previous_logit" and not full and start >= max(len(prompt), 1):
            canvas[start] = predict(start, start)[1]
        for sub in range(start, end, conventions.sub_block_length):
            window = range(sub, min(sub + conventions.sub_block_length, end))
            while waiting := [p for p in window if canvas[p] == conventions.mask_id]:
                found = {p: predict(p, len(canvas) if full else end) for p in waiting}
                best = max(waiting, key=lambda p: (found[p][0], -p))
                canvas[best] = found[best][1]
    return canvas[len(prompt) : len(prompt) + gen_len]
