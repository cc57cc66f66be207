"""decoupleQ (Guo et al. 2024, arXiv 2404.12759): scales and zeros are free numbers, fitted in closed form to the codes,
and codes are rounded to the scales, in turn, until the error of the output is small.

minimise ||(W - Q) X||^2 over Q = (code - zero) * scale      (eq. 5 of the paper; H = X X^T)

The paper alternates over the whole matrix, with GPTQ as its integer step. Here GPTQ makes the first codes, and then one
group of columns after the other is solved against all others held fixed: its scale and zero by least squares, then its
codes by coordinate descent, each step exact in the full H. A step that float16 scales would make worse is not taken, so
the error never rises. Where the full-precision model runs beside the quantized one, W is replaced as in gptaq.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlm_edge.quant.gptaq import GptaqConfig, corrected
from dlm_edge.quant.gptq import Problem, pose, round_columns
from dlm_edge.quant.grid import Grid, Search, pack_grid, round_scales, round_zeros
from dlm_edge.quant.rounded import Rounded
from dlm_edge.quant.statistics import InputStatistics, InverseFactor
from dlm_edge.quantized import ZeroKind, dequantize, middle_code

__all__ = ["DecoupleqConfig", "dequantize", "quantize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoupleqConfig(GptaqConfig):
    """`sweeps` over all groups, each with `rounds` of fit and rounding for a group.

    Unlike GPTQ alone it gains from a search of the first grid: coordinate descent does not find its way out of one
    that is too wide. More than three sweeps changed nothing on the 5M reference model.
    """

    bits: int = 2
    zero: ZeroKind = "float"
    search: Search | None = Search(candidates=12, smallest=0.5)  # of the first grid; it matters at 2 bits
    sweeps: int = 3
    rounds: int = 2


def quantize(name: str, weight: NDArray[np.float32], config: DecoupleqConfig, inputs: InputStatistics) -> Rounded:
    """As gptq.quantize; a drift of `inputs` is used when there is one and `alpha` is not 0."""
    notes = list[str]()
    problem = pose(name, weight, config, inputs, notes)
    if problem is None:
        return Rounded(None, notes)
    problem = corrected(problem, inputs, config.alpha)
    codes, grid = round_columns(problem, config)
    damping = problem.factor.damping
    problem = replace(problem, factor=InverseFactor(torch.empty(0, 0), damping))  # its memory is wanted for the next
    hessian = inputs.second_moment.float()
    hessian.diagonal().copy_(problem.diagonal + damping * problem.diagonal.mean())
    codes, grid = descend(hessian, problem, codes, grid, config)
    return Rounded(pack_grid(codes, grid, config.zero), notes, damping)


def descend(
    hessian: Tensor, problem: Problem, codes: Tensor, grid: Grid, config: DecoupleqConfig
) -> tuple[Tensor, Grid]:
    """Codes [out, in] and grid [out, groups] with no more error than those given."""
    size = config.group_size
    parts = [
        Group(
            codes[:, i : i + size].T.float(),
            grid.scales[:, i // size],
            middle_code(grid.bits) if grid.zeros is None else grid.zeros[:, i // size],
        )
        for i in range(0, codes.shape[1], size)
    ]
    wanted = problem.weights.T
    alive = (problem.weights.view(len(codes), -1, size) != 0).any(-1).T  # a group of zeros stays exactly zero
    lost = torch.cat([part.values() for part in parts]) - wanted  # [in, out]
    order = problem.diagonal.view(-1, size).amax(1).argsort(descending=True, stable=True).tolist()
    for _ in range(config.sweeps):
        for g in order:
            rows = slice(g * size, (g + 1) * size)
            own = hessian[rows, rows]
            gradient = hessian[rows] @ lost  # what the group should lower, [group_size, out]
            parts[g] = improve(parts[g], own, gradient, config).where(alive[g], parts[g])
            lost[rows] = parts[g].values() - wanted[rows]
    zeros = None if grid.zeros is None else torch.stack([torch.as_tensor(p.zero) for p in parts], 1)
    return torch.cat([p.codes for p in parts]).T.contiguous(), Grid(
        torch.stack([p.scale for p in parts], 1), zeros, grid.bits
    )


@dataclass(frozen=True, slots=True)
class Group:
    """Codes [group_size, out] as floats, scale [out], zero [out] or a number."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | float

    def values(self) -> Tensor:
        return (self.codes - self.zero) * self.scale

    def where(self, condition: Tensor, other: Group) -> Group:
        zero = self.zero
        if isinstance(zero, Tensor):
            zero = torch.where(condition, zero, other.zero)
        return Group(
            torch.where(condition, self.codes, other.codes), torch.where(condition, self.scale, other.scale), zero
        )


def improve(group: Group, own: Tensor, gradient: Tensor, config: DecoupleqConfig) -> Group:
    """`own` [group_size, group_size] is the group's block of H; `gradient` = H (Q - W) at its rows."""
    before = group.values()
    # The error as a function of the group's values v is (v - target)^T own (v - target) + const.
    target = before - torch.linalg.solve(own, gradient)
    best, least = group, error(group, own, target)
    for _ in range(config.rounds):
        group = fitted(group, own, target, config)
        group = Group(rounded(group, own, target, config.bits), group.scale, group.zero)
        now = error(group, own, target)
        best, least = group.where(now < least, best), torch.minimum(now, least)
    return best


def error(group: Group, own: Tensor, target: Tensor) -> Tensor:
    """[out]"""
    difference = group.values() - target
    return (difference * (own @ difference)).sum(0)


def fitted(group: Group, own: Tensor, target: Tensor, config: DecoupleqConfig) -> Group:
    """Least-squares scale, and zero where it is free, for the codes as they are."""
    shifted = group.codes - group.zero
    heavy = own @ shifted
    cc, ct = (shifted * heavy).sum(0), (heavy * target).sum(0)
    if config.zero != "float":
        scale = ct / cc
        return replace(group, scale=_usable(scale, group.scale))
    ones = own.sum(1)
    oo, co, ot = ones.sum(), heavy.sum(0), ones @ target
    determinant = cc * oo - co * co
    scale = (ct * oo - co * ot) / determinant
    offset = (cc * ot - co * ct) / determinant  # values = scale * shifted + offset
    usable = _usable(torch.where(determinant > 1e-6 * cc * oo, scale, torch.nan), group.scale)
    assert isinstance(group.zero, Tensor)
    zero = torch.where(usable == group.scale, group.zero, group.zero - offset / usable)
    return replace(group, scale=usable, zero=round_zeros(torch.where(torch.isfinite(zero), zero, group.zero)))


def _usable(scale: Tensor, old: Tensor) -> Tensor:
    """`scale` as stored; `old` where it is not finite or would leave a group without a scale."""
    fine = torch.isfinite(scale) & (scale.abs() > 0.01 * old.abs()) & (scale.abs() < 100 * old.abs())
    return round_scales(torch.where(fine, scale, old))


def rounded(group: Group, own: Tensor, target: Tensor, bits: int) -> Tensor:
    """Codes by coordinate descent: one pass over the columns of the group, each to its best code given the others."""
    codes, top = group.codes.clone(), 2**bits - 1
    push = own @ (group.values() - target)
    for j in range(len(codes)):
        wanted = codes[j] - push[j] / (own[j, j] * group.scale)
        new = wanted.round_().clamp_(0, top)
        push.addr_(own[:, j], (new - codes[j]) * group.scale)
        codes[j] = new
    return codes
