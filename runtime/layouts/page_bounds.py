"""Bounds of the keys of each page, in int8, which SelectPages scores pages by.

For every key k of a page and every channel c: low_c * scale <= k_c <= high_c * scale, without exception. Keys are those
after norm and RoPE. The keys of the last, partly filled page are kept exact, so that its bounds grow without loss.
"""

from __future__ import annotations

import numpy as np

from dlm_edge.errors import JobError
from dlm_edge.kernels.quantized_pages.reference import Floats
from dlm_edge.runtime.layouts.layout import CacheShape, LayoutDescription, describe
from dlm_edge.runtime.layouts.parts import Array


class PageBounds:
    """page_low, page_high int8 [1, n_kv_heads, n_slots, head_dim] and page_scale float32 [1, n_kv_heads, n_slots] of
    each layer, for n_slots = capacity / page_size pages."""

    def __init__(self, shape: CacheShape, capacity: int, page_size: int) -> None:
        assert capacity % page_size == 0, "the capacity holds whole pages"
        self.capacity, self.page_size = capacity, page_size
        slots = (1, shape.n_kv_heads, capacity // page_size)
        self._arrays: list[dict[str, Array]] = [
            {
                "page_low": np.zeros((*slots, shape.head_dim), np.int8),
                "page_high": np.zeros((*slots, shape.head_dim), np.int8),
                "page_scale": np.zeros(slots, np.float32),
            }
            for _ in range(shape.n_layers)
        ]
        self._last_page = [
            np.zeros((shape.n_kv_heads, page_size, shape.head_dim), np.float32) for _ in range(shape.n_layers)
        ]
        self._ends = [0] * shape.n_layers

    @property
    def cursor(self) -> int:
        return min(self._ends)

    def buffers(self, layer: int) -> dict[str, Array]:
        return self._arrays[layer]

    def append(self, layer: int, start: int, keys: Floats) -> None:
        """Keys [n_kv_heads, W, head_dim] of positions [start, start + W), where the layer ends so far.

        Raises JobError E-NAN when a key is not finite; the layer stays as it was.
        """
        assert start == self._ends[layer], "keys are appended where the layer ends"
        assert start + keys.shape[1] <= self.capacity, "keys beyond the capacity"
        if not np.isfinite(keys).all():
            raise JobError(
                "E-NAN", f"a key of layer {layer} is NaN or infinite", "check the model with `dlm-edge inspect`"
            )
        page, held = divmod(start, self.page_size)
        pending = np.concatenate([self._last_page[layer][:, :held], keys], 1)
        self._write(layer, page, pending)
        rest = pending[:, pending.shape[1] // self.page_size * self.page_size :]
        self._last_page[layer][:, : rest.shape[1]] = rest
        self._ends[layer] = start + keys.shape[1]

    def _write(self, layer: int, page: int, keys: Floats) -> None:
        """Bounds of the pages from `page` on, whose keys these are."""
        for name, values in bounds_of(keys, self.page_size).items():
            self._arrays[layer][name][0, :, page : page + values.shape[1]] = values

    def exact_position(self, position: int) -> int:
        """`position` in the last page, else the beginning of its page, whose other keys are no longer known."""
        assert 0 <= position <= self.cursor, "only backwards"
        if all(position >= end // self.page_size * self.page_size for end in self._ends):
            return position
        return position // self.page_size * self.page_size

    def truncate(self, position: int) -> int:
        """Go back to `exact_position(position)`, and say which it was."""
        reached = self.exact_position(position)
        page, held = divmod(reached, self.page_size)
        for layer in range(len(self._ends)):
            self._write(layer, page, self._last_page[layer][:, :held])
            self._ends[layer] = reached
        return reached

    def reset(self) -> None:
        self.truncate(0)

    @property
    def bytes_per_token(self) -> float:
        return sum(array.nbytes for arrays in self._arrays for array in arrays.values()) / self.capacity

    @property
    def fixed_bytes(self) -> int:
        return sum(array.nbytes for array in self._last_page)

    def state(self, layer: int) -> dict[str, Array]:
        """Views of what counts at the present cursor: to be saved, or after `restore` to be filled."""
        n_pages = -(-self.cursor // self.page_size)
        views = {name: array[:, :, :n_pages] for name, array in self._arrays[layer].items()}
        return {**views, "last_page": self._last_page[layer][:, : self.cursor % self.page_size]}

    def restore(self, cursor: int) -> None:
        """Say that [0, cursor) is stored; the caller fills `state` of every layer right after."""
        assert 0 <= cursor <= self.capacity
        self._ends = [cursor] * len(self._ends)

    def description(self) -> LayoutDescription:
        layers = range(len(self._ends))
        return LayoutDescription(f"pages-{self.page_size}", self.cursor, describe(self.state(i) for i in layers))


def bounds_of(keys: Floats, page_size: int) -> dict[str, Array]:
    """page_low, page_high int8 [n_kv_heads, n_pages, head_dim], page_scale float32 [n_kv_heads, n_pages] of finite keys
    [n_kv_heads, length, head_dim] that begin at a page; the last page may be partly filled.

    scale = max |k| / 127 rounded up; a page of zeros has scale 0.
    """
    n_heads, length, head_dim = keys.shape
    filled = np.concatenate([keys, keys[:, -1:].repeat(-length % page_size, 1)], 1)
    pages = filled.reshape(n_heads, filled.shape[1] // page_size, page_size, head_dim)
    low64, high64 = pages.min(2).astype(np.float64), pages.max(2).astype(np.float64)
    largest = np.maximum(-low64, high64).max(-1)
    scale = (largest / 127).astype(np.float32)
    scale = np.where(scale.astype(np.float64) * 127 < largest, np.nextafter(scale, np.float32(np.inf)), scale)
    divisor = np.where(scale > 0, scale, 1).astype(np.float64)[..., None]
    # A quotient of two float32 is at least 2^-26 away from every integer but 0 and itself: no rounding crosses one.
    return {
        "page_low": np.floor(low64 / divisor).astype(np.int8),
        "page_high": np.ceil(high64 / divisor).astype(np.int8),
        "page_scale": scale,
    }
