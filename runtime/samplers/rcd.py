"""Residual context (RCD, Hu et al. 2026, arXiv 2601.22954): slots that stay masked remember the last guess.

The commit rule is `threshold`. What is new is the input of a slot that stays masked: in place of the mask's embedding E[m]
it is (1 - a) E[m] + a sum_v p_v E[v], where p is the last prediction there and a its entropy over log V, both at
`mix_temperature`. `mix` gives it as a few ids and weights, so that a graph gathers their embeddings and sums them, and needs no
product with the whole vocabulary; what the likeliest `mix_top_k` tokens leave out of p is shared out among them.

A model must be trained for such inputs (the paper: a billion tokens, and the first step of a block comes from the model
before that training). No supported family says in its config that it was, and step graphs have no input for
mixes; so every bundle refuses this sampler.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from dlm_edge.runtime.samplers.contract import (
    Commits,
    Needs,
    Probability,
    Sampler,
    SamplerOptions,
    SelectState,
    Threshold,
    commit_where,
)
from dlm_edge.runtime.scores import Row, Scores


class Options(SamplerOptions, frozen=True):
    threshold: Threshold = 0.85  # confidence from which a token is committed
    strength: Probability = 1.0  # factor of a; 0: the mask alone, as for `threshold`
    mix_temperature: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)] = 1.0  # of the remembered prediction
    mix_top_k: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16  # tokens of it that are kept


def select(scores: Scores, state: SelectState, options: Options) -> Commits:
    return commit_where(scores, scores.confidence >= options.threshold)


def mix(logits: Row, mask_id: int, options: Options) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids [mix_top_k + 1] and weights, which sum to 1, of the embeddings that stand for a slot: the mask's first, then the
    likeliest tokens, equals by rising id. With fewer tokens than mix_top_k there are fewer. Of finite `logits` [vocab_size]."""
    tokens = np.flatnonzero(np.arange(len(logits)) != mask_id)
    scaled = logits[tokens].astype(np.float64) / options.mix_temperature
    weights = np.exp(scaled - scaled.max())
    p = weights / weights.sum()
    entropy = -float(np.sum(p * np.log(np.maximum(p, np.finfo(np.float64).tiny))))
    share = options.strength * min(max(entropy / np.log(max(len(p), 2)), 0.0), 1.0)
    kept = np.argsort(-p, kind="stable")[: options.mix_top_k]
    ids = np.concatenate([[mask_id], tokens[kept]]).astype(np.int64)
    return ids, np.concatenate([[1 - share], share * p[kept] / p[kept].sum()]).astype(np.float32)


SAMPLER = Sampler(name="rcd", select=select, options=Options, needs=Needs(needs_soft_input=True))
