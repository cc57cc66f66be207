"""Rotations folded offline (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456; R1 and R2 of SpinQuant, arXiv 2405.16406).

R1 turns the residual stream: whatever writes to it (embedding, o, down) is followed by R1, whatever reads from it
(q, k, v, gate, up, head) is preceded by its transpose. RMS norms commute with a rotation only without gains, so
every gain is first multiplied into the linears that read it. R2 turns the values of every head between v and o.
Both spread what one channel held over all, and cost nothing at run time. The rotations that would have to run online
(R3, R4: queries, keys, and the input of down) are left out.

R1 is a Hadamard matrix with random signs where the width is a power of two. Otherwise it is the Kronecker product of the
largest such matrix and a random orthogonal one of the odd factor. invariance.py checks that nothing but the basis changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_edge.families.spec import ModelSpec
from dlm_edge.models.transformer import Layer

# Turned at a time: every step of a Hadamard product copies its input in float64, and small copies stay in the cache.
PIECE_VALUES = 1 << 17


@dataclass(frozen=True, slots=True)
class Orthogonal:
    """x -> (x * signs) (H kron F): `signs` [width], H the Hadamard matrix of width / len(odd), F = `odd`; float64."""

    signs: Tensor
    odd: Tensor

    @classmethod
    def random(cls, width: int, generator: torch.Generator) -> Orthogonal:
        power = width & -width
        signs = torch.randint(0, 2, (width,), generator=generator).double() * 2 - 1
        square = torch.randn(width // power, width // power, generator=generator, dtype=torch.float64)
        return cls(signs, torch.linalg.qr(square).Q if len(square) > 1 else torch.ones(1, 1, dtype=torch.float64))

    def apply(self, x: Tensor) -> Tensor:
        """x [..., width] in any float type to x R, float64."""
        folded = (x.double() * self.signs).reshape(*x.shape[:-1], -1, len(self.odd))
        turned: Tensor = hadamard(folded.transpose(-1, -2)).transpose(-1, -2) @ self.odd
        return turned.reshape(x.shape)

    def turn(self, x: Tensor, gain: Tensor | None = None) -> None:
        """Rows of x [n, width], times `gain` [width] where one is given, in place and some at a time."""
        for rows in torch.split(x, max(1, PIECE_VALUES // x.shape[1])):
            rows.copy_(self.apply(rows if gain is None else rows.double() * gain.double()))


def hadamard(x: Tensor) -> Tensor:
    """x [..., n] times the orthonormal Hadamard matrix of Sylvester's construction; n a power of two."""
    n, half = x.shape[-1], 1
    while half < n:
        pairs = x.reshape(*x.shape[:-1], -1, 2, half)
        x = torch.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], -2).flatten(-3)
        half *= 2
    return x / math.sqrt(n)


@dataclass(frozen=True, slots=True)
class Rotation:
    """`residual` is R1, `heads` is R2 (the same for every head and layer)."""

    residual: Orthogonal
    heads: Orthogonal

    @classmethod
    def of(cls, spec: ModelSpec, seed: int) -> Rotation:
        generator = torch.Generator().manual_seed(seed)
        return cls(Orthogonal.random(spec.hidden_size, generator), Orthogonal.random(spec.head_dim, generator))

    def embedding(self, rows: Tensor) -> Tensor:
        """Rows [n, hidden] of the embedding as the rotated model needs them, float32."""
        turned = rows.float().clone()
        self.residual.turn(turned)
        return turned

    def head(self, rows: Tensor, final_norm_gain: Tensor) -> Tensor:
        """Rows [n, hidden] of the head, with the gain of the final norm, which becomes ones. A tied head has to be untied."""
        turned = rows.float().clone()
        self.residual.turn(turned, final_norm_gain)
        return turned

    def layer(self, layer: Layer) -> None:
        """Change the layer in place so that it works on the rotated residual stream."""
        for norm, readers in (("attn_norm", ("q", "k", "v")), ("mlp_norm", ("gate", "up"))):
            gain = getattr(layer, norm).weight.data
            for linear in readers:
                self.residual.turn(getattr(layer, linear).weight.data, gain)
            gain.fill_(1)
        for linear in ("o", "down"):
            self.residual.turn(getattr(layer, linear).weight.data.T)
        self.turn_heads(layer)

    def turn_heads(self, layer: Layer) -> None:
        """R2 alone: the function of the layer stays as it is."""
        for weight in (layer.o.weight.data, layer.v.weight.data.T):
            for part in torch.split(weight, max(1, PIECE_VALUES // weight.shape[1])):
                part.copy_(self.each_head(part, layer.spec.head_dim))
        if layer.v.bias is not None:
            layer.v.bias.data.copy_(self.each_head(layer.v.bias.data, layer.spec.head_dim))

    def each_head(self, x: Tensor, head_dim: int) -> Tensor:
        """x [..., heads * head_dim] in float64, every head turned by itself."""
        return self.heads.apply(x.reshape(*x.shape[:-1], -1, head_dim)).reshape(x.shape)
