"""Lossless draft and verify (FreeDave, Wu et al. 2025, arXiv 2510.00294): the same text as `static`, in fewer passes.

The drafts are nested: draft k commits what the static quota rule would commit in k steps if the scores stayed as they
are. runtime/drafting.py evaluates them in one pass and keeps those that the rule confirms, in a chain. The published
code compares a step with every later draft, and takes a draft without masks for confirmed; here a draft counts only
if the one before it does, and positions and tokens must be equal.

One pass computes as much as `drafts` steps: that pays where reading the weights takes the time, not where arithmetic
does. At a temperature above 0 every step draws anew, so guesses seldom hold; the text is still that of `static`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import msgspec

from dlm_edge.runtime.samplers import static
from dlm_edge.runtime.samplers.contract import Commits, Sampler, SelectState, commit_rows, most_confident_first
from dlm_edge.runtime.scores import Scores


class Options(static.Options, frozen=True):
    drafts: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4  # steps that one pass may evaluate; 1: those of `static`


def drafts(scores: Scores, state: SelectState, options: Options) -> list[Commits]:
    order, chain, taken = most_confident_first(scores), list[Commits](), 0
    for ahead in range(options.drafts):
        quota = replace(state, step=state.step + ahead).quota
        if taken == len(order):
            break
        chain.append(commit_rows(scores, order[taken : taken + quota]))
        taken = min(taken + quota, len(order))
    return chain


SAMPLER = Sampler(name="freedave", select=static.select, options=Options, drafts=drafts)
