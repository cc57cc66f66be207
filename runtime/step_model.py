"""What the denoising loop asks of a model: one forward pass over a window of the sequence."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]
FULL_ATTENTION = 1 << 40  # an attn_block longer than any sequence: every key is visible


class Terminated(Exception):
    """A run ended early because `terminate` was called; never leaves the runtime."""


class StepModel(Protocol):
    def reset(self, capacity: int) -> None:
        """Make room for `capacity` positions of one sequence and forget an earlier `terminate`."""

    def run(self, ids: Ids, start: int, cache_len: int, attn_block: int, logit_rows: Ids) -> Logits:
        """Forward of the window ids [W] at absolute position `start`; writes its K/V there.

        Keys are the cache [0, cache_len) without the window's own positions, and the window itself; key j is
        visible to query i iff j < (i // attn_block + 1) * attn_block. Returns logits [R, vocab_size] of the
        window's rows `logit_rows` [R], un-shifted; the array is valid until the next run.
        Raises Terminated.
        """

    def terminate(self) -> None:
        """From any thread: end the present run, and let every later one fail until `reset`."""

    def discard(self) -> None:
        """Drop the caches, so that nothing a failed run left there can reach the next sequence."""
