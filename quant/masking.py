"""How many tokens a state hides, and which: stratified shares, exact counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def strata(count: int, generator: torch.Generator) -> Tensor:
    """One number from each of `count` equal parts of (0, 1], in random order."""
    inside = 1 - torch.rand(count, generator=generator)
    return (torch.randperm(count, generator=generator) + inside) / count


def shares(count: int, quota: Sequence[float], generator: torch.Generator) -> Tensor:
    """`strata` carried to the distribution that has quota[i] of its mass, spread evenly, in bucket i of (0, 1]."""
    edges = torch.tensor([0.0, *quota], dtype=torch.float64).cumsum(0)
    u = strata(count, generator).double().clamp_max(float(edges[-1]))
    bucket = (torch.searchsorted(edges, u) - 1).clamp(0, len(quota) - 1)
    inside = (u - edges[bucket]) / (edges[bucket + 1] - edges[bucket])
    return ((bucket + inside) / len(quota)).float()


def hide(allowed: Tensor, share: Tensor, generator: torch.Generator, rank: Tensor | None = None) -> Tensor:
    """Bool like `allowed` [n, width]: in row i exactly ceil(share[i] * allowed[i].sum()) of its positions.

    Positions of lower `rank` [width] are hidden before those of a higher one; among equals chance decides.
    """
    counts = (share * allowed.sum(1)).ceil()
    order = torch.rand(allowed.shape, generator=generator)
    if rank is not None:
        order = order + rank
    order = order.masked_fill(~allowed, float("inf"))
    return (order.argsort(1).argsort(1) < counts[:, None]) & allowed
