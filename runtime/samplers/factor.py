"""As many as their number makes safe (Fast-dLLM, Wu et al. 2025, arXiv 2505.22618, section 3.3, factor-based).

With confidences c1 >= c2 >= ..., the largest n with (n + 1) (1 - cn) < factor is committed, and the most confident slot
in any case: up to a factor of 1 the tokens are those that taking one after the other would give (their theorem 1). No
confidence exceeds 1, so a factor of 0 is `static` with one token per step. The published code adds one where its scan
ends at either end of the list, and so accepts a last slot that the rule refuses; here the rule holds everywhere.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

from dlm_edge.runtime.samplers.contract import (
    Commits,
    Sampler,
    SamplerOptions,
    SelectState,
    commit_rows,
    most_confident_first,
)
from dlm_edge.runtime.scores import Scores


class Options(SamplerOptions, frozen=True):
    factor: Annotated[float, msgspec.Meta(ge=0.0, le=1e6)] = 1.0  # useful from 0.7 to 1.9


def select(scores: Scores, state: SelectState, options: Options) -> Commits:
    order = most_confident_first(scores)
    n = np.arange(1, len(order) + 1)
    is_safe = (n + 1) * (1 - scores.confidence[order]) < options.factor  # rises with n, so true of the first ones
    return commit_rows(scores, order[: max(int(is_safe.sum()), 1)])


SAMPLER = Sampler(name="factor", select=select, options=Options)
