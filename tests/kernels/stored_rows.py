"""Matrices as the XQuant layouts store them, with NaN wherever nothing may be read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlm_edge.kernels.dequantize_rows import reference


@dataclass(frozen=True)
class Stored:
    """`n_tail` is the group by channel, 0 by token."""

    axis: str
    capacity: int
    width: int
    group: int
    cache_len: int

    def __str__(self) -> str:
        return f"{self.axis}-{self.width}x{self.capacity}-g{self.group}-c{self.cache_len}"

    def inputs(self, bits: int, seed: int = 0) -> list[np.ndarray]:
        """codes, scale, low and tail."""
        values = np.random.default_rng(seed).standard_normal((self.capacity, self.width)).astype(np.float32)
        codes, scale, low = reference.encode_rows(values, bits=bits, axis=self.axis, group=self.group)
        n_tail = self.group if self.axis == "channel" else 0
        n = self.cache_len // n_tail * n_tail if n_tail else self.cache_len
        tail = np.full((n_tail, self.width), np.nan, np.float32)
        if n_tail:
            tail[: self.cache_len - n] = values[n : self.cache_len]
        unread = n // self.group if self.axis == "channel" else n
        codes[n:], scale[unread:], low[unread:] = 255, np.nan, np.nan
        return [codes, scale, low, tail]

    def rows(self, count: int, seed: int = 1) -> np.ndarray:
        """Repeated and out of order, the last position among them."""
        rows = np.random.default_rng(seed).integers(0, max(self.cache_len, 1), count)
        rows[count // 2 : count // 2 + 1] = self.cache_len - 1
        return rows
