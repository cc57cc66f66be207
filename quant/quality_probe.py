"""Masked NLL on held-out states, before and after quantization, measured while the layers stream by.

Two small streams of hidden states run beside the calibration: one through the layers of the source, one through the
quantized layers, from the packed embedding to the packed head. So the report can show what was lost without ever
holding two models, or one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dlm_edge.families.spec import ModelSpec
from dlm_edge.models.transformer import Layer
from dlm_edge.quant.layer_pass import advance
from dlm_edge.quant.states import Batch

BUCKETS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))

# rows of a head as (number of the first, float32 [rows, hidden]), one piece after the other
HeadRows = Iterator[tuple[int, Tensor]]


class QualityProbe:
    """`before` and `after` are hidden states [rows, seq, hidden] per batch, in the source and in the quantized model."""

    def __init__(self, spec: ModelSpec, batches: list[Batch], embed: Callable[[str, Tensor], Tensor]) -> None:
        """`embed` (which: "before" or "after", ids) gives the embedding of token ids in either model."""
        self.spec, self.batches = spec, batches
        self.before = [embed("before", b.ids) for b in batches]
        self.after = [embed("after", b.ids) for b in batches]

    def advance(self, source: Layer, quantized: Layer) -> None:
        advance(source, self.spec, self.batches, self.before)
        advance(quantized, self.spec, self.batches, self.after)

    def result(self, before: tuple[Tensor, HeadRows], after: tuple[Tensor, HeadRows]) -> list[dict[str, Any]]:
        """Nats per hidden token of both models in each bucket; each is given by its final norm gain and its head."""
        shares = torch.cat([share for _, _, _, share in self.targets()])
        nats = [
            negative_log_likelihood(
                self.gathered(hidden, norm), torch.cat([t for *_, t, _ in self.targets()]), head, self.spec
            )
            for hidden, (norm, head) in ((self.before, before), (self.after, after))
        ]
        rows = []
        for low, high in BUCKETS:
            inside = (shares > low) & (shares <= high)
            if inside.any():
                old, new = (float(n[inside].mean()) for n in nats)
                rows.append({"low": low, "high": high, "tokens": int(inside.sum()), "before": old, "after": new})
        return rows

    def gathered(self, hidden: list[Tensor], gain: Tensor) -> Tensor:
        """Normed hidden states [hidden tokens, hidden] that predict each hidden token."""
        rows = torch.cat([hidden[n][row, source] for n, row, source, *_ in self.places()])
        scale = torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + self.spec.norm_eps)
        return rows * scale * gain

    def targets(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for n, row, source, index in self.places():
            batch = self.batches[n]
            share = hidden_share(batch, self.spec.conventions.block_length)[row, index]
            yield row, source, batch.originals[row, index], share

    def places(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """(batch, row, place whose output predicts the token, place of the token) of every hidden token that counts."""
        conventions = self.spec.conventions
        for n, batch in enumerate(self.batches):
            source = predictor(batch, conventions.logit_shift, conventions.block_length)
            hidden = (batch.ids != batch.originals) & (batch.weights > 0)
            row, index = torch.nonzero(hidden & (source >= 0), as_tuple=True)
            yield n, row, source[index], index


def predictor(batch: Batch, shift: int, block: int) -> Tensor:
    """For every place in the row the place whose logits predict it; -1 for the first token of a shifted model."""
    place = torch.arange(len(batch.positions))
    if not shift:
        return place
    n_clean = int(batch.positions.max()) + 1
    noisy_first = (place >= n_clean) & (batch.positions % block == 0)  # read from the clean copy of the block before
    return torch.where(noisy_first, batch.positions, place) - 1


def hidden_share(batch: Batch, block: int) -> Tensor:
    """[rows, seq]: hidden tokens of the block's noisy copy (of the row, where there is no copy) in its length."""
    hidden = (batch.ids != batch.originals).double()
    n_clean = int(batch.positions.max()) + 1
    if hidden.shape[1] == n_clean:
        return hidden.mean(1, keepdim=True).expand_as(hidden)
    noisy = hidden[:, n_clean:].reshape(len(hidden), -1, block).mean(2).repeat_interleave(block, 1)
    return torch.cat([torch.zeros_like(hidden[:, :n_clean]), noisy], 1)


def negative_log_likelihood(rows: Tensor, targets: Tensor, head: HeadRows, spec: ModelSpec) -> Tensor:
    """Nats of each target, float64 [n], with the head in pieces; ids that cannot be produced have no probability."""
    total = torch.full((len(rows),), -math.inf, dtype=torch.float64)
    wanted = torch.zeros(len(rows), dtype=torch.float64)
    for first, piece in head:
        logits = (rows @ piece[: max(0, spec.vocab_size - first)].T).double()
        here = (targets >= first) & (targets < first + logits.shape[1])
        wanted[here] = logits[here, targets[here] - first]
        if first <= spec.conventions.mask_id < first + logits.shape[1]:
            logits[:, spec.conventions.mask_id - first] = -math.inf
        if logits.shape[1]:
            total = torch.logaddexp(total, logits.logsumexp(1))
    return total - wanted
