"""Keys and values of clean earlier blocks, for many sequences whose present blocks start at different places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dlm_edge.models.transformer import DiffusionTransformer, pattern, rope_tables


class Prefix:
    """Holds keys and values [sequences, n_kv_heads, seq, head_dim] of every layer.

    `ids` [sequences, seq] are read up to `length` when it is made; what is not clean yet there is overwritten by
    `store` before any block may see it.
    """

    def __init__(self, model: DiffusionTransformer, ids: Tensor, length: int) -> None:
        self.model, spec = model, model.spec
        shape = (len(ids), spec.n_kv_heads, ids.shape[1], spec.head_dim)
        self.keys = [torch.zeros(shape) for _ in range(spec.n_layers)]
        self.values = [torch.zeros(shape) for _ in range(spec.n_layers)]
        if length:
            self._fill(ids[:, :length])

    def _fill(self, ids: Tensor) -> None:
        positions, layer = torch.arange(ids.shape[1]), iter(range(len(self.keys)))
        attend = pattern(self.model.spec.conventions, positions)

        def recorded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            i = next(layer)
            self.keys[i][:, :, : len(positions)], self.values[i][:, :, : len(positions)] = k, v
            return attend(q, k, v)

        self.model.run_layers(self.model.embed(ids), positions, recorded)

    def run(self, rows: Tensor, start: Tensor, block: Tensor, *, store: bool = False) -> Tensor:
        """Hidden states [n, block, hidden] of the tokens `block` [n, block] of sequences `rows`, from `start` [n] on."""
        spec, (n, length) = self.model.spec, block.shape
        places = start[:, None] + torch.arange(length)
        cos, sin = (t.view(n, 1, length, -1) for t in rope_tables(places.flatten(), spec.head_dim, spec.rope_theta))
        seen = int(start.max())
        visible = torch.cat([torch.arange(seen) < start[:, None], torch.ones(n, length, dtype=torch.bool)], 1)
        x: Tensor = self.model.embed(block)
        for i, layer in enumerate(self.model.layers):

            def attend(q: Tensor, k: Tensor, v: Tensor, i: int = i) -> Tensor:
                if store:
                    at = (rows[:, None], slice(None), places)  # indexed dimensions come first: [n, block, heads, dim]
                    self.keys[i][at], self.values[i][at] = k.transpose(1, 2), v.transpose(1, 2)
                k = torch.cat([self.keys[i][rows, :, :seen], k], 2)
                v = torch.cat([self.values[i][rows, :, :seen], v], 2)
                grouped = q.shape[1] != k.shape[1]
                return F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None, None], enable_gqa=grouped)

            x = layer(x, cos, sin, attend)
        return x

    def store(self, rows: Tensor, start: Tensor, block: Tensor) -> None:
        """Keep the keys and values of blocks that are complete."""
        self.run(rows, start, block, store=True)
