"""The check that a folded rotation leaves the model as it was, made while the layers stream by.

A few hundred random tokens, hidden at several ratios, run through the source in full precision. Every layer also
runs rotated, on the rotated states before it, and has to give the rotated states behind it; the embedding has to give
rotated rows, and the head the same logits. Each step starts from exact states, so the tolerance knows no depth.
One layer is in memory at a time: it runs first, is rotated in place, and runs again.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlm_edge.errors import InputFileError, JobError
from dlm_edge.families.spec import ModelSpec
from dlm_edge.models.transformer import Layer, pattern, rope_tables
from dlm_edge.quant.outer import chunks
from dlm_edge.quant.source_weights import SourceWeights

MASK_RATIOS = (1.0, 0.75, 0.5, 0.25, 0.0)  # of one row of tokens each
LENGTH = 64
LOGIT_EVERY = 16  # of these states one is carried to the head, whose product is large
# Of the largest value. Measured on both reference models, plain and with planted outliers, and on random models of every
# family of widths 48 to 4096: at most 1.7e-6, which is the rounding of sums in float32. A forgotten gain gives 1e-2.
LARGEST_CHANGE = 1e-5


class InvarianceCheck:
    """`states` [rows, seq, hidden] are those of the source behind the last layer that was passed. All changes are relative
    to the largest value; one that is not rounding raises E-PARITY."""

    def __init__(self, weights: SourceWeights) -> None:
        assert weights.rotation is not None
        self.weights, self.rotation, self.spec = weights, weights.rotation, weights.checkpoint.spec
        self.ids = probe_ids(self.spec)
        positions = torch.arange(self.ids.shape[1])
        self.tables = rope_tables(positions, self.spec.head_dim, self.spec.rope_theta)
        self.attend = pattern(self.spec.conventions, positions)
        self.states = weights.embedded(self.ids, rotated=False)
        got = weights.embedded(self.ids)
        self.embedding = checked("the embedding", got, self.rotation.residual.apply(self.states))

    def turn(self, number: int, layer: Layer) -> float:
        """Rotate the source's `layer` in place; how much its output changed. Raises E-PARITY, E-NAN."""
        turned = self.rotation.residual.apply(self.states).float()
        finite = self.advance(number, layer)
        self.rotation.layer(layer)
        got = layer(turned, *self.tables, self.attend)
        expected = self.rotation.residual.apply(self.states)
        return checked(f"the output of layer {number}", got[finite], expected[finite])

    def advance(self, number: int, layer: Layer) -> Tensor:
        """The states through a layer of the source; which of them [rows, seq] came out finite, the others are zero now."""
        out = layer(self.states, *self.tables, self.attend)
        finite = torch.isfinite(out).all(-1)
        if not finite.all() and (not self.weights.zero_nonfinite or not finite.any()):
            message = f"layer {number}: {int((~finite).sum())} of {finite.numel()} random states are NaN or infinite"
            raise InputFileError("E-NAN", message, "check the source weights, or zero them with --allow-nonfinite")
        self.states = torch.where(finite[..., None], out, 0.0)
        return finite

    def logits(self) -> float:
        """The change of the logits behind the last layer."""
        states, spec = self.states[:, ::LOGIT_EVERY].flatten(0, 1), self.spec
        turned, width = self.rotation.residual.apply(states).float(), spec.hidden_size
        plain, rotated = (
            F.rms_norm(x, (width,), torch.from_numpy(read("final_norm.weight", 0, width)), spec.norm_eps)
            for x, read in ((states, self.weights.source_rows), (turned, self.weights.rows))
        )
        source, largest, difference = self.weights.origin("head.weight"), 0.0, 0.0
        for first, rows in chunks(self.weights, "head.weight"):
            before = plain @ torch.from_numpy(self.weights.source_rows(source, first, first + len(rows))).T
            difference = max_or_nan(difference, rotated @ rows.T - before)
            largest = max_or_nan(largest, before)
        return judged("the logits", difference / max(largest, 1e-30))


def probe_ids(spec: ModelSpec) -> Tensor:
    """[rows, seq]: random tokens, of which each row hides another share; the same for equal models."""
    generator, length = torch.Generator().manual_seed(0), min(LENGTH, spec.max_positions)
    ids = torch.randint(0, spec.vocab_size, (len(MASK_RATIOS), length), generator=generator)
    place = torch.rand(ids.shape, generator=generator).argsort(1)
    hidden = torch.tensor([round(ratio * length) for ratio in MASK_RATIOS])
    return torch.where(place < hidden[:, None], spec.conventions.mask_id, ids)


def checked(what: str, got: Tensor, expected: Tensor) -> float:
    largest = max(max_or_nan(0.0, expected), 1e-30)
    return judged(what, max_or_nan(0.0, got - expected) / largest)


def max_or_nan(before: float, values: Tensor) -> float:
    """The larger of `before` and the largest |value|; NaN and infinity count as infinite."""
    found = float(values.abs().max())
    return max(before, found) if math.isfinite(found) else math.inf


def judged(what: str, change: float) -> float:
    """The change, in three digits, where it is within the rounding of float32; raises E-PARITY otherwise."""
    if not change <= LARGEST_CHANGE:
        message = f"the rotation changed {what} by {change:.1e} of the largest value, allowed are {LARGEST_CHANGE:.0e}"
        raise JobError("E-PARITY", message, "this is a bug, please report it; it does not happen without --rotate")
    return float(f"{change:.2e}")


def summary(spec: ModelSpec, embedding: float, layers: list[float], logits: float) -> dict[str, Any]:
    """What the record and the report say of the check."""
    changes = {"embedding": embedding, **{f"layer {n}": change for n, change in enumerate(layers)}, "logits": logits}
    worst = max(changes, key=changes.__getitem__)
    return {
        "tokens": probe_ids(spec).numel(),
        "largest_change": changes[worst],
        "where": worst,
        "logits_change": logits,
        "allowed": LARGEST_CHANGE,
    }
