"""Credit for tokens that stay the best guess (CreditDecoding, arXiv 2510.06133; as dInfer has it).

Every slot keeps a credit c_v for the tokens that were its top-1. In each selection all credits decay, and the present
top-1 gains p^exponent. Ranks and ids follow from the logits l_v + strength * log(1 + c_v), that is from

    p'(v) = p(v) (1 + c_v)^strength / (1 + sum_w p(w) ((1 + c_w)^strength - 1)),

exact over the whole vocabulary, since all tokens but the few that hold credit have (1 + c)^strength = 1. All slots
whose p' reaches the threshold are committed, and the best one in any case. The id is the one with the highest p'
(the lowest among equals), which may be another than the present top-1.

Where ids are drawn, the drawn token stands for the top-1 and is kept; its p' alone decides. Credits are of one block:
the sampler's memory, without a table over the vocabulary.

Limit: strength 0 is `threshold`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dlm_edge.runtime.samplers.contract import (
    Commits,
    Needs,
    Positions,
    Probability,
    Sampler,
    SamplerOptions,
    SelectState,
    Threshold,
    commit_where,
)
from dlm_edge.runtime.scores import Row, Scores

Credits = Mapping[int, float]  # token -> credit, of one slot


class Options(SamplerOptions, frozen=True):
    threshold: Threshold = 0.9  # p' from which a token is committed
    strength: Probability = 0.7  # alpha: weight of log(1 + credit) beside the logits
    decay: Probability = 0.8  # beta: what is left of a credit after each selection
    exponent: Probability = 0.2  # gamma: below 1 lets weak guesses collect credit nearly as fast as strong ones


def select(scores: Scores, state: SelectState, options: Options) -> Commits:
    earlier: Mapping[int, Credits] = state.memory or {}
    credits = {
        position: collected(earlier.get(position, {}), token, probability, options)
        for position, token, probability in zip(
            scores.positions.tolist(), scores.ids.tolist(), scores.confidence.tolist(), strict=True
        )
    }
    ids, confidence = scores.ids.copy(), scores.confidence.copy()
    for row, of_slot in enumerate(credits.values()):
        token = int(ids[row])
        tokens = np.array(sorted(of_slot) if state.sampling.temperature == 0 else [token])
        fused = fused_probability(scores.logits[row], token, confidence[row], of_slot, tokens, options.strength)
        best = int(np.argmax(fused))
        ids[row], confidence[row] = tokens[best], fused[best]
    ranked = replace(scores, ids=ids, confidence=confidence)
    return commit_where(ranked, confidence >= options.threshold, credits)


def collected(earlier: Credits, token: int, probability: float, options: Options) -> dict[int, float]:
    credits = {each: options.decay * credit for each, credit in earlier.items()}
    credits[token] = credits.get(token, 0.0) + probability**options.exponent
    return credits


def fused_probability(
    logits: Row, token: int, probability: float, credits: Credits, asked: Positions, strength: float
) -> NDArray[np.float64]:
    """[n] p' of the asked tokens, all of which hold credit; `probability` is p of `token`."""
    holders = np.array(sorted(credits))
    gains = (1.0 + np.array([credits[each] for each in holders.tolist()])) ** strength
    with np.errstate(divide="ignore"):  # a drawn token's probability can be 0
        weights = np.exp(np.log(probability) + (logits[holders].astype(np.float64) - np.float64(logits[token])))
    fused = weights * gains / (1.0 + float(np.dot(weights, gains - 1.0)))
    result: NDArray[np.float64] = fused[np.searchsorted(holders, asked)]
    return result


SAMPLER = Sampler(
    name="credit",
    select=select,
    options=Options,
    needs=Needs(needs_full_logits=True, chooses_ids=True),
)
