"""The torch module behind every supported family: pre-norm, RoPE, RMSNorm, grouped heads, gated SiLU.

It is the reference that calibration runs on and that exported graphs are checked against; the runtime
does not use it. Attribute names are our own role names (`layers.0.q`, `layers.0.down`), the families
map them to checkpoint names.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlm_edge.families.spec import Conventions, ModelSpec

# q [bsz, n_heads, q_len, head_dim], k and v [bsz, n_kv_heads, kv_len, head_dim] -> like q
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class RMSNorm(nn.Module):
    """x / rms(x) * weight with float32 statistics; the result has the dtype of x."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square() / x.shape[-1]
        return x * torch.rsqrt(mean_square + self.eps).to(x.dtype) * self.weight.to(x.dtype)


def rope_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [len(positions), head_dim], float32, halves repeated (rotate-half convention)."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions.float()[:, None] * theta**-exponent
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)


class Layer(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        hidden, bias = spec.hidden_size, spec.qkv_bias
        self.attn_norm = RMSNorm(hidden, spec.norm_eps)
        self.q = nn.Linear(hidden, spec.q_width, bias=bias)
        self.k = nn.Linear(hidden, spec.kv_width, bias=bias)
        self.v = nn.Linear(hidden, spec.kv_width, bias=bias)
        self.o = nn.Linear(spec.q_width, hidden, bias=False)
        if spec.qk_norm:
            self.q_norm = RMSNorm(spec.head_dim, spec.norm_eps)
            self.k_norm = RMSNorm(spec.head_dim, spec.norm_eps)
        self.mlp_norm = RMSNorm(hidden, spec.norm_eps)
        self.gate = nn.Linear(hidden, spec.intermediate_size, bias=False)
        self.up = nn.Linear(hidden, spec.intermediate_size, bias=False)
        self.down = nn.Linear(spec.intermediate_size, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        x = x + self.attention(self.attn_norm(x), cos, sin, attend)
        h = self.mlp_norm(x)
        out: Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return out

    def attention(self, h: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        projected: Tensor = self.o(self.attention_mix(h, cos, sin, attend))
        return projected

    def attention_mix(self, h: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """What the output projection reads [bsz, seq, n_heads * head_dim]."""
        spec, (bsz, length, _) = self.spec, h.shape
        q = self.q(h).view(bsz, length, spec.n_heads, spec.head_dim)
        k = self.k(h).view(bsz, length, spec.n_kv_heads, spec.head_dim)
        v = self.v(h).view(bsz, length, spec.n_kv_heads, spec.head_dim)
        if spec.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q.transpose(1, 2), cos, sin), rotate(k.transpose(1, 2), cos, sin)
        out = attend(q, k, v.transpose(1, 2))
        return out.transpose(1, 2).reshape(bsz, length, spec.q_width)


class DiffusionTransformer(nn.Module):
    """`forward(input_ids [bsz, seq]) -> logits [bsz, seq, vocab]`, un-shifted, as the network gives them."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.embedding_rows, spec.hidden_size)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.n_layers))
        self.final_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.head = nn.Linear(spec.hidden_size, spec.embedding_rows, bias=False)
        if spec.tied_head:
            self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor, *, origin: int = 0) -> Tensor:
        """`origin` is where the block grid begins, for block-causal attention; 0 unless a caller decides."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.run_layers(self.embed(input_ids), positions, pattern(self.spec.conventions, positions, origin))
        logits: Tensor = self.head(self.final_norm(hidden))
        return logits

    def run_layers(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states [bsz, seq, hidden] through every layer, for any positions and attention pattern."""
        cos, sin = rope_tables(positions, self.spec.head_dim, self.spec.rope_theta)
        for layer in self.layers:
            x = layer(x, cos, sin, attend)
        return x


def pattern(conventions: Conventions, positions: Tensor, origin: int = 0) -> Attend:
    """The family's own attention over a whole sequence: key j is visible to query i iff j < visible_end(i)."""
    if conventions.attention == "full":
        return dense_attention(None)
    length = 1 if conventions.attention == "causal" else conventions.block_length
    visible_end = origin + (torch.div(positions - origin, length, rounding_mode="floor") + 1) * length
    return dense_attention(positions[None, :] < visible_end[:, None])


def dense_attention(mask: Tensor | None) -> Attend:
    """Scaled dot-product attention under a bool mask [q_len, kv_len]; None: everything is visible."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)

    return attend
