"""GPTAQ (Li et al., ICML 2025, arXiv 2504.02692): GPTQ whose rounded weights have to give, on the inputs that the
quantized layers before produce, what the original weights give on those of the full-precision model.

The paper spreads what each column i owes to its drifted input, w_i (x_full - x)_i, over the columns after it (its P
matrix). Here the least-squares target W' = W + alpha W D (H + damping)^-1, D = E[(x_full - x) x^T], is formed first and
rounded by GPTQ: the same objective, ||W X_full - Q X||, with no column left out of the correction. A linear that adds
to the residual stream also makes up for what that stream has lost already: ||h_full + W X_full - h - Q X||.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dlm_edge.errors import UsageProblem
from dlm_edge.quant.gptq import GptqConfig, Problem, pose, round_columns
from dlm_edge.quant.grid import pack_grid
from dlm_edge.quant.rounded import Rounded
from dlm_edge.quant.statistics import InputStatistics
from dlm_edge.quantized import dequantize

__all__ = ["GptaqConfig", "dequantize", "quantize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GptaqConfig(GptqConfig):
    """`alpha`: the share of the drift that is corrected, 0 (GPTQ) to 1."""

    alpha: float = 0.75

    def __post_init__(self) -> None:
        super(GptaqConfig, self).__post_init__()
        if not 0 <= self.alpha <= 1:
            raise UsageProblem("E-QUANT", f"alpha must be between 0 and 1, got {self.alpha:g}", "0.75 is usual")


def quantize(name: str, weight: NDArray[np.float32], config: GptaqConfig, inputs: InputStatistics) -> Rounded:
    """As gptq.quantize; `inputs` needs a drift. At the peak two more matrices of the size of the weight are held."""
    notes = list[str]()
    problem = pose(name, weight, config, inputs, notes)
    if problem is None:
        return Rounded(None, notes)
    assert inputs.drift is not None
    codes, grid = round_columns(corrected(problem, inputs, config.alpha), config)
    return Rounded(pack_grid(codes, grid, config.zero), notes, problem.factor.damping)


def corrected(problem: Problem, inputs: InputStatistics, alpha: float) -> Problem:
    """The problem with W + alpha (W D + owed) H^-1 in the place of W; inputs that were always zero keep weight zero.

    As it was when `inputs` know nothing of the full-precision model.
    """
    if alpha == 0 or inputs.drift is None:
        return problem
    missing = problem.weights @ inputs.drift
    if inputs.owed is not None:
        missing += inputs.owed
    upper = problem.factor.upper
    shift = (missing[:, problem.order] @ upper.T) @ upper
    missing[:, problem.order] = shift
    return replace(problem, weights=problem.weights.add(missing, alpha=alpha))
