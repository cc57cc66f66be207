"""What is kept of the inputs of a linear layer once it is quantized: for the report and for an imatrix."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dlm_edge.quant.statistics import InputStatistics


@dataclass(frozen=True, slots=True)
class Moments:
    """`squares` [in] float32: sum of c x^2 over `tokens` tokens of weight c; `peak`: the largest |x| of the strongest
    channel over that of the median channel."""

    squares: Tensor
    tokens: int
    peak: float

    @classmethod
    def of(cls, inputs: InputStatistics) -> Moments:
        median = float(inputs.absolute_max.median())
        peak = float(inputs.absolute_max.max()) / median if median > 0 else 0.0
        return cls((inputs.second_moment.diagonal() * inputs.total_weight).float(), inputs.tokens, round(peak, 2))
