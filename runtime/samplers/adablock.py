"""Blocks that end where a sentence or line does (AdaBlock-dLLM, Lu et al. 2025, arXiv 2509.26432).

The first scores of a block are taken over a window of a quarter of the generation. Of the slots there whose predicted
token contains a delimiter, the most confident one ends the block, itself included, if its confidence reaches the
delimiter's threshold; otherwise the block has its usual length. The block is then decoded as by `threshold`, beginning
with those first scores. Delimiters are texts, found in the vocabulary of each model; the paper has LLaDA's ids.

Borders that training fixed cannot move, so this is for full attention, with any cache. It takes no sub-blocks.

Limits: where no delimiter is predicted it is `threshold`; there with a threshold above 1 it is `static`.
"""

from __future__ import annotations

import numpy as np

from dlm_edge.runtime.samplers import threshold
from dlm_edge.runtime.samplers.contract import (
    Commits,
    Needs,
    Probability,
    Sampler,
    SamplerOptions,
    SelectState,
    Threshold,
    most_confident_first,
)
from dlm_edge.runtime.scores import Scores


class Options(SamplerOptions, frozen=True):
    threshold: Threshold = 0.9  # confidence from which a token is committed
    delimiters: tuple[str, ...] = ("\n",)  # texts; a token that contains one may end a block
    delimiter_threshold: Threshold = 0.3  # confidence from which it does; the paper has 0.5 for Dream
    window: Probability = 0.25  # share of the generation in which delimiters are looked for


def reach(options: Options, gen_len: int) -> int:
    return max(int(options.window * gen_len), 1)


def window(options: Options, gen_len: int, block_length: int) -> int:
    return max(reach(options, gen_len), block_length)


def border(scores: Scores, state: SelectState, options: Options) -> int:
    canvas = state.canvas
    last = min(state.span[0] + reach(options, canvas.gen_len), canvas.prompt_len + canvas.gen_len)
    ends_a_block = (
        np.isin(scores.ids, state.tokens["delimiters"])
        & (scores.positions < last)
        & (scores.confidence >= options.delimiter_threshold)
    )
    order = most_confident_first(scores)
    found = order[ends_a_block[order]]
    return int(scores.positions[found[0]]) + 1 if found.size else state.block[1]


def select(scores: Scores, state: SelectState, options: Options) -> Commits:
    return threshold.select(scores, state, threshold.Options(threshold=options.threshold))


SAMPLER = Sampler(
    name="adablock",
    select=select,
    options=Options,
    needs=Needs(full_attention=True),
    border=border,
    window=window,
    texts={"delimiters": "containing"},
)
