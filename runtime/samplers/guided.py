"""A smaller model supervises (guided diffusion of FlashDLM, Hu et al. 2025, arXiv 2505.21467, section 3.3).

The model drafts all masked slots of the (sub-)block at once; the guide (runtime/guide.py) walks over the draft from
left to right. Tokens are accepted while the guide agrees: with the rule `deterministic` where its own first choice is the
same, with `topk_relative` where the token is among its `k` likeliest and at least `ratio` times as likely as its
first choice. At the first rejection the guide's first choice is written, and the rest is drafted again.

So it is speculative decoding with a diffusion model as the drafter: with `deterministic` the text is what the guide
alone would write from left to right, whatever the model says; the other rule leaves the model a say. Every step fills
at least one slot. The published guide is autoregressive, with another vocabulary; here both have the same.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np

from dlm_edge.runtime.samplers.contract import (
    Commits,
    Needs,
    Opinion,
    Probability,
    Sampler,
    SamplerOptions,
    SelectState,
)
from dlm_edge.runtime.scores import Scores


class Options(SamplerOptions, frozen=True):
    rule: Literal["deterministic", "topk_relative"] = "topk_relative"
    k: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 2  # topk_relative: the guide's likeliest tokens that pass
    ratio: Probability = 0.5  # topk_relative: of its first choice's probability, that a token has at least


def select(scores: Scores, state: SelectState, options: Options) -> Commits:
    ids: list[int] = []
    for token, opinion in zip(scores.ids.tolist(), state.guide, strict=False):
        if not agrees(token, opinion, options):
            ids.append(opinion.best)
            break
        ids.append(token)
    return Commits(scores.positions[: len(ids)], np.array(ids, np.int64))


def agrees(token: int, opinion: Opinion, options: Options) -> bool:
    if token == opinion.best or options.rule == "deterministic":
        return token == opinion.best
    return opinion.n_likelier < options.k and opinion.probability >= options.ratio * opinion.best_probability


SAMPLER = Sampler(name="guided", select=select, options=Options, needs=Needs(needs_guide=True, chooses_ids=True))
