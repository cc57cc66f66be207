"""One layer over all calibration states, stopping before each group of linears that reads the same input."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dlm_edge.families.spec import ModelSpec
from dlm_edge.models.transformer import Layer, rope_tables
from dlm_edge.quant.states import Batch

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
ADDING = (("o",), ("down",))  # to the residual stream; what they read takes matrix products to make


class Inputs:
    """What some linears read, [rows, seq, in] for each batch: made anew from the hidden states whenever it is read, so
    that the inputs of one batch are in memory and not those of all; or, after `hold`, made once and kept.

    They are to be read before the next group of linears is asked for. With `zero_nonfinite`, NaN and infinite values
    become zero; `zeroed` is how many there were in the batches read so far.
    """

    def __init__(
        self, make: Callable[[int], Tensor], n_batches: int, *, zero_nonfinite: bool, source: Inputs | None = None
    ) -> None:
        self._make, self._zero_nonfinite, self._source = make, zero_nonfinite, source
        self._zeroed = [0] * n_batches
        self._held: list[Tensor] | None = None

    def __getitem__(self, n: int) -> Tensor:
        if self._held is not None:
            return self._held[n]
        x = self._make(n)
        if self._zero_nonfinite:
            self._zeroed[n] = int((~torch.isfinite(x)).sum())
            x = torch.nan_to_num(x, 0.0, 0.0, 0.0) if self._zeroed[n] else x
        return x

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.__getitem__, range(len(self._zeroed)))

    @property
    def zeroed(self) -> int:
        return sum(self._zeroed)

    def hold(self) -> list[Tensor]:
        """For those that read them more than once. What is changed in the list, the linears will read. The inputs of
        the group before, which they are made from, are then of no more use."""
        if self._held is None:
            self._held = list(self)
            if self._source is not None:
                self._source.release()
        return self._held

    def release(self) -> None:
        self._held = None


Stage = tuple[tuple[str, ...], Inputs]  # linears that read the same inputs, and these


def run_stages(
    layer: Layer, spec: ModelSpec, batches: list[Batch], hidden: list[Tensor], *, zero_nonfinite: bool = False
) -> Generator[Stage]:
    """Yield (linears, their inputs) in forward order; `hidden` [rows, seq, hidden] per batch advances in place.

    The caller may replace the weights of the yielded linears before it asks for the next group: all that
    follows, inside this layer too, then sees the new weights.
    """

    def inputs(make: Callable[[int], Tensor], source: Inputs | None = None) -> Inputs:
        return Inputs(make, len(batches), zero_nonfinite=zero_nonfinite, source=source)

    def gated(n: int) -> Tensor:
        x = before_mlp[n]
        return F.silu(layer.gate(x), inplace=True).mul_(layer.up(x))

    normed = inputs(lambda n: layer.attn_norm(hidden[n]))
    yield ("q", "k", "v"), normed
    mixed = inputs(lambda n: attention_mix(layer, spec, batches[n], normed[n]), normed)
    yield ("o",), mixed
    for n, x in enumerate(hidden):
        hidden[n] = x + layer.o(mixed[n])
    mixed.release()
    before_mlp = inputs(lambda n: layer.mlp_norm(hidden[n]))
    yield ("gate", "up"), before_mlp
    product = inputs(gated, before_mlp)
    yield ("down",), product
    for n, x in enumerate(hidden):
        hidden[n] = x + layer.down(product[n])


def attention_mix(layer: Layer, spec: ModelSpec, batch: Batch, normed: Tensor) -> Tensor:
    """The input of `o` [rows, seq, n_heads * head_dim]."""
    cos, sin = rope_tables(batch.positions, spec.head_dim, spec.rope_theta)
    return layer.attention_mix(normed, cos, sin, batch.attend)


def advance(
    layer: Layer, spec: ModelSpec, batches: list[Batch], hidden: list[Tensor], *, zero_nonfinite: bool = False
) -> None:
    """`hidden` through the whole layer, by the very operations of `run_stages`: a resumed job repeats its bits."""
    for _ in run_stages(layer, spec, batches, hidden, zero_nonfinite=zero_nonfinite):
        pass
