"""The second moment of a linear layer's inputs, and the triangular factor that GPTQ works with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_edge.errors import InputFileError

LARGEST_DAMPING = 1.0
FIRST_FLOOR, FLOORS = 1e-6, 6  # of the largest diagonal entry, then ten times as much, so many times
PANEL = 128  # rows of a symmetric product at once: nearly half of it need not be computed
BLOCK = 512  # columns of the blocked factorisations


class InputStatistics:
    """What is known of the inputs x [in_features] of some linears, over calibration tokens of weight c.

    `second_moment`: mean of c x x^T (products in float32, the mean in float64). `absolute_sum`: sum c |x|.
    `absolute_max`: the largest |x| of any token that counts. Kept only when the full-precision model runs beside the
    quantized one, both in float32: `drift`, mean of c (x_full - x) x^T; and for linears that add to the residual
    stream h [tokens, out], `owed` [out, in], mean of c (h_full - h) x^T with the h that they add to.
    Means are over the total weight. Memory: one [in, in] float64, and with a drift one float32 beside it.
    `sample`: inputs [tokens, in] of some tokens and their weights [tokens], for what no mean can tell.
    """

    def __init__(self, name: str, in_features: int, *, with_drift: bool = False) -> None:
        self.name = name  # for messages
        self.second_moment = torch.zeros(in_features, in_features, dtype=torch.float64)
        self.absolute_sum = torch.zeros(in_features, dtype=torch.float64)
        self.absolute_max = torch.zeros(in_features)
        self.drift = torch.zeros(in_features, in_features) if with_drift else None
        self.owed: Tensor | None = None
        self.total_weight, self.tokens = 0.0, 0
        self.sample = torch.empty(0, in_features), torch.empty(0)

    def add(self, x: Tensor, weights: Tensor, full: Tensor | None = None, residual_gap: Tensor | None = None) -> None:
        """x and `full` [tokens, in_features], weights [tokens], `residual_gap` = h_full - h [tokens, out_features].

        A token of weight 0 leaves no trace, whatever it holds.
        """
        counted = weights > 0
        if not counted.any():
            return
        if not counted.all():
            x, weights = x[counted], weights[counted]
        if not torch.isfinite(x).all():
            bad = int((~torch.isfinite(x)).sum())
            message = f"{self.name}: {bad} of {x.numel()} input values on the calibration states are NaN or infinite"
            raise InputFileError("E-NAN", message, "check the source weights, or zero them with --allow-nonfinite")
        total = self.total_weight + float(weights.double().sum())
        kept, share = self.total_weight / total, 1 / total
        add_symmetric(self.second_moment.mul_(kept), x * weights.sqrt()[:, None], share)
        if self.drift is not None:
            assert full is not None
            gap = full[counted].sub_(x).mul_(weights[:, None])
            self.drift.addmm_(gap.T, x, beta=kept, alpha=share)
            del gap
        if residual_gap is not None:
            if self.owed is None:
                self.owed = torch.zeros(residual_gap.shape[1], x.shape[1])
            self.owed.addmm_((residual_gap[counted] * weights[:, None]).T, x, beta=kept, alpha=share)
        magnitude = x.abs()
        self.absolute_sum += weights @ magnitude
        self.absolute_max = torch.maximum(self.absolute_max, magnitude.amax(0))
        self.total_weight = total
        self.tokens += len(x)

    def keep_some(self, x: Tensor, weights: Tensor, count: int) -> None:
        """Add up to `count` of the tokens x [tokens, in] of weight above 0, evenly spread, to the sample."""
        counted = torch.nonzero(weights > 0)[:, 0]
        chosen = counted[:: -(-len(counted) // count)] if len(counted) else counted
        kept, kept_weights = self.sample
        self.sample = torch.cat([kept, x[chosen]]), torch.cat([kept_weights, weights[chosen]])

    def hessian(self) -> Tensor:
        """[in, in] float64: a copy of the second moment, to be written to."""
        return self.second_moment.clone()

    def absolute_mean(self) -> Tensor:
        """[in] float32: the weighted mean of |x|."""
        return (self.absolute_sum / max(self.total_weight, 1e-30)).float()


def add_symmetric(matrix: Tensor, x: Tensor, share: float) -> None:
    """matrix += share * x^T x, exactly symmetric."""
    for start in range(0, len(matrix), PANEL):
        end = min(start + PANEL, len(matrix))
        product = x[:, start:end].T @ x[:, start:]
        matrix[start:end, start:].add_(product, alpha=share)
        matrix[end:, start:end].add_(product[:, end - start :].T, alpha=share)


def output_error(hessian: Tensor, weight: Tensor, quantized: Tensor) -> float:
    """||(W - W') X||^2 / ||W X||^2 on the calibration states; 0 when W X is zero and W' X too."""
    return output_errors(hessian, weight, [quantized])[0]


def output_errors(hessian: Tensor, weight: Tensor, quantized: list[Tensor]) -> list[float]:
    """The same of several W'; the norm they share is computed once."""
    lost, whole = [0.0] * len(quantized), 0.0
    for start in range(0, len(weight), BLOCK):
        rows = weight[start : start + BLOCK].double()
        whole += quadratic(hessian, rows)
        for n, other in enumerate(quantized):
            lost[n] += quadratic(hessian, rows - other[start : start + BLOCK])
    return [each / whole if whole > 0 else float(each > 0) for each in lost]


def quadratic(hessian: Tensor, rows: Tensor) -> float:
    """Sum of r H r^T over rows [n, in] with H symmetric, of which only one half is multiplied."""
    total = 0.0
    for start in range(0, len(hessian), BLOCK):
        end = min(start + BLOCK, len(hessian))
        own = rows[:, start:end]
        product = own @ hessian[start:end, start:end]
        if end < len(hessian):
            product.addmm_(rows[:, end:], hessian[end:, start:end], alpha=2)
        total += float((product * own).sum())
    return total


@dataclass(frozen=True, slots=True)
class InverseFactor:
    """`upper` [in, in] float32 with H'^-1 = upper^T upper, where H' is the second moment in the order that was asked
    for, with its diagonal raised: `damping` * its mean added, then nothing below `floor` * its maximum."""

    upper: Tensor
    damping: float
    floor: float = 0.0


def inverse_factor(hessian: Tensor, damping: float, order: Tensor | None = None) -> InverseFactor | None:
    """Factor a float64 second moment; its rows and columns are taken in `order`. Zeros on its diagonal count as dead
    inputs and as 1.

    The damping doubles until it succeeds, then a floor under the diagonal grows. None when nothing helps (not a second
    moment, or not finite). Beside `hessian` one float64 and one float32 matrix of its size are held at the peak.
    """
    diagonal = hessian.diagonal()
    if not torch.isfinite(diagonal).all() or (diagonal < 0).any():
        return None
    diagonal = torch.where(diagonal == 0, 1.0, diagonal)
    order = torch.arange(len(hessian)) if order is None else order
    work = torch.empty_like(hessian)
    for tried, floor in raises(damping):
        raised = (diagonal + tried * diagonal.mean()).clamp_min(floor * diagonal.max())
        # The lower factor of the matrix read backwards, inverted and read backwards, is the upper one of the inverse.
        backwards = order.flip(0)
        gather(hessian, backwards, work)
        work.diagonal().copy_(raised[backwards])
        if cholesky_(work) and math.isfinite(invert_lower_(work).sum()):
            return InverseFactor(flipped(work), tried, floor)
    return None


def raises(damping: float) -> Iterator[tuple[float, float]]:
    while damping <= LARGEST_DAMPING:
        yield damping, 0.0
        damping = max(2 * damping, 0.01)
    for n in range(FLOORS):
        yield LARGEST_DAMPING, FIRST_FLOOR * 10**n


def gather(matrix: Tensor, order: Tensor, out: Tensor) -> None:
    """out = matrix[order][:, order], without a third matrix."""
    for start in range(0, len(matrix), BLOCK):
        out[start : start + BLOCK] = matrix[order[start : start + BLOCK]][:, order]


def flipped(matrix: Tensor) -> Tensor:
    """Rows and columns of a lower triangular matrix in reverse, in float32; what stands above its diagonal is dropped."""
    out = torch.empty(matrix.shape)
    for start in range(0, len(matrix), BLOCK):
        rows = matrix[start : start + BLOCK].float().tril_(start)
        out[len(matrix) - start - len(rows) : len(matrix) - start] = rows.flip(0, 1)
    return out


def cholesky_(a: Tensor) -> bool:
    """The lower factor of `a` in its place; above the diagonal stands rubbish. False when `a` is not positive definite."""
    for start in range(0, len(a), BLOCK):
        end = min(start + BLOCK, len(a))
        corner, failed = torch.linalg.cholesky_ex(a[start:end, start:end])
        if failed:
            return False
        a[start:end, start:end] = corner
        below = a[end:, start:end]
        below.copy_(torch.linalg.solve_triangular(corner.T, below, upper=True, left=False))
        for column in range(end, len(a), BLOCK):
            stop = min(column + BLOCK, len(a))
            a[column:, column:stop].addmm_(below[column - end :], below[column - end : stop - end].T, alpha=-1)
    return True


def invert_lower_(a: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix in its place; what stands above the diagonal is neither read nor zeroed."""
    starts = range(0, len(a), BLOCK)
    for start in reversed(starts):
        end = min(start + BLOCK, len(a))
        corner = a[start:end, start:end]
        identity = torch.eye(end - start, dtype=a.dtype)
        corner.copy_(torch.linalg.solve_triangular(corner.tril(), identity, upper=False))
        for row in reversed(range(end, len(a), BLOCK)):  # the rows below are inverted already, and read what is above
            stop = min(row + BLOCK, len(a))
            left = a[row:stop, end:stop].tril(row - end)
            a[row:stop, start:end] = -(left @ a[end:stop, start:end]) @ corner
    return a
