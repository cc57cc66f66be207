"""Toy models whose logits are hashes, tied, equal, certain, or loudest at the mask id."""

from __future__ import annotations

from copy import copy

import numpy as np

from dlm_edge.runtime.guide import GuideModel
from dlm_edge.runtime.samplers import SAMPLERS
from tests.runtime.toy import EOS, MASK, ToyModel

KINDS = ("hash", "tied", "equal", "certain", "loud-mask")


class Scorer(ToyModel):
    """`boost` is added to the end of text's logit. A position in `bad` has the logits `value`, of one id or of all."""

    def __init__(self, kind="hash", *, boost=0.0, bad=(), value=np.nan, shift=0, **toy):
        super().__init__(**toy)
        self.kind, self.boost, self.bad, self.value, self.shift = kind, boost, np.array(bad), value, shift

    def logits(self, hidden, positions):
        logits = super().logits(hidden, positions)
        if self.kind == "tied":  # a few levels only, so that ids and confidences are often equal
            logits = np.round(logits / (self.sharpness / 2)) * np.float32(self.sharpness / 2)
        if self.kind in ("equal", "certain"):
            best = np.argmax(logits, axis=1)
            logits[:] = 0
            logits[:, self.forbid] -= 50
            if self.kind == "certain":
                logits[np.arange(len(logits)), best] = 60
        if self.kind == "loud-mask":
            logits[:, MASK] += 100
        logits[:, EOS] += self.boost
        is_bad = np.isin(positions + self.shift, self.bad)
        logits[is_bad, slice(None) if self.value == -np.inf else 2] = self.value
        return logits.astype(np.float32)


class Echo(ToyModel):
    """Row i has its best logit at id i + shift: the position that it predicts."""

    def __init__(self, shift):
        super().__init__(vocab=200)
        self.shift = shift

    def logits(self, hidden, positions):
        rows = np.zeros((len(positions), self.vocab), np.float32)
        rows[np.arange(len(positions)), positions + self.shift] = 5.0
        return rows


def guide_of(sampler, model, conventions):
    """For samplers that need one: a model of the same kind as `model`, of another mind."""
    if not SAMPLERS[sampler].needs.needs_guide:
        return None
    other = copy(model)
    other.seed, other.runs = model.seed + 1, []
    return GuideModel(other, conventions)
