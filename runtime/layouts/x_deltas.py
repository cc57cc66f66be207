"""x-cl4, x-cl3, x-cl2: XQuant-CL (arXiv 2508.10395), differences of X between neighbouring layers.

Layers up to and including the third, the base, store X itself at 4 bits. With A_base = Q(X_base), every later layer i stores
D_i = Q(X_i - A_{i-1}) and A_i = A_{i-1} + D_i: against what can be reconstructed, so that errors do not add up. The graph
carries A upwards in float32 (the paper: at 4 bits). Deltas have one scale per token and group, as X has; the paper
does not say which axis it uses.

append takes x [W, hidden_size] of the layers in order, 0 to the last, for one window after the other. Arrays as in x_rows.
"""

from __future__ import annotations

import numpy as np

from dlm_edge.kernels.quantized_pages.reference import Floats
from dlm_edge.runtime.layouts.grouping import channel_group
from dlm_edge.runtime.layouts.layout import CacheShape, Layout
from dlm_edge.runtime.layouts.parts import TokenGroups

BASE = 2  # the third layer (section 4.2 of the paper: experiments)
BASE_BITS = 4
NO_ROWS = np.empty((0, 0), np.float32)


def base_layer(n_layers: int) -> int:
    return min(BASE, n_layers - 1)


def layer_bits(layer: int, bits: int) -> int:
    """Bits of a layer in a layout whose deltas have `bits`."""
    return BASE_BITS if layer <= BASE else bits


class CrossLayerDeltas(Layout):
    def __init__(self, name: str, shape: CacheShape, capacity: int, bits: int, group: int) -> None:
        width = shape.hidden_size
        self._parts = [
            TokenGroups((), capacity, width, bits=each, group=channel_group(group, width, each))
            for each in (layer_bits(i, bits) for i in range(shape.n_layers))
        ]
        super().__init__(name, capacity, [{"x": part} for part in self._parts])
        self._base = base_layer(shape.n_layers)
        self._sum = NO_ROWS  # A of the window that is being appended

    def append(self, layer: int, start: int, *values: Floats) -> None:
        (x,) = values
        end = start + len(x)
        if layer > self._base:
            assert self._ends[layer - 1] == end and len(self._sum) == len(x), "layers are appended in order"
            super().append(layer, start, x - self._sum)
            self._sum += self._parts[layer].decode(start, end)
        else:
            super().append(layer, start, x)
            if layer == self._base:
                self._sum = self._parts[layer].decode(start, end)
        if layer == self.n_layers - 1:
            self._sum = NO_ROWS  # a whole sequence of it would outweigh what is stored

    def reconstruct(self, layer: int, start: int, end: int) -> Floats:
        """X of one layer as the graph rebuilds it: [end - start, hidden_size]."""
        rebuilt = self._parts[min(layer, self._base)].decode(start, end)
        for part in self._parts[self._base + 1 : layer + 1]:
            rebuilt += part.decode(start, end)
        return rebuilt
