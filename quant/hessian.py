"""The second moment of a linear layer's inputs, and the triangular factor that GPTQ works with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_edge.errors import InputFileError

LARGEST_DAMPING = 1.0


class Hessian:
    """sum_t weight_t x_t x_t^T over calibration tokens; products in float32, the sum over batches in float64."""

    def __init__(self, name: str, in_features: int) -> None:
        self.name = name  # for messages
        self.sum = torch.zeros(in_features, in_features, dtype=torch.float64)
        self.total_weight, self.tokens = 0.0, 0

    def add(self, x: Tensor, weights: Tensor) -> None:
        """x [tokens, in_features], weights [tokens]; a token of weight 0 leaves no trace, whatever it holds."""
        counted = weights > 0
        x, weights = x[counted], weights[counted]
        if not torch.isfinite(x).all():
            bad = int((~torch.isfinite(x)).sum())
            message = f"{self.name}: {bad} of {x.numel()} input values on the calibration states are NaN or infinite"
            raise InputFileError("E-NAN", message, "check the source weights, or zero them with --allow-nonfinite")
        scaled = x * weights.sqrt()[:, None]
        self.sum += (scaled.T @ scaled).double()
        self.total_weight += float(weights.double().sum())
        self.tokens += len(x)

    def mean(self) -> Tensor:
        """[in, in] float64, the sum divided by the total weight."""
        return self.sum / max(self.total_weight, 1e-30)


def output_error(hessian: Tensor, weight: Tensor, quantized: Tensor) -> float:
    """||(W - W') X||^2 / ||W X||^2 on the calibration states; 0 when W X is zero and W' X too."""
    difference, weight = (weight - quantized).double(), weight.double()
    lost = float(((difference @ hessian) * difference).sum())
    whole = float(((weight @ hessian) * weight).sum())
    return lost / whole if whole > 0 else float(lost > 0)


@dataclass(frozen=True, slots=True)
class InverseFactor:
    """`upper` [in, in] float32 with (H + damping * mean(diag H) * I)^-1 = upper^T upper."""

    upper: Tensor
    damping: float


def inverse_factor(hessian: Tensor, damping: float) -> InverseFactor | None:
    """Factor a float64 matrix without zeros on its diagonal; the damping doubles until it succeeds.

    None when even a damping of 1 does not make it positive definite (not a second moment, or not finite).
    """
    mean_diagonal = hessian.diagonal().mean()
    while damping <= LARGEST_DAMPING:
        damped = hessian.clone()
        damped.diagonal().add_(damping * mean_diagonal)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed and torch.isfinite(lower).all():
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and torch.isfinite(upper).all():
                return InverseFactor(upper.float(), damping)
        damping = max(2 * damping, 0.01)
    return None
