"""What the denoising loop asks of a model: one forward pass over a window of the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dlm_edge.kernels.quantized_pages.planes import BOTH
from dlm_edge.kernels.select_pages.reference import EXACT_POLICY, Policy
from dlm_edge.runtime.attention import EXACT, AttentionSettings

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]
FULL_ATTENTION = 1 << 40  # an attn_block longer than any sequence: every key is visible


class Terminated(Exception):
    """A run ended early because `terminate` was called; never leaves the runtime."""


class StepModel(Protocol):
    def reset(self, capacity: int, attention: AttentionSettings = EXACT, max_rows: int = 1) -> None:
        """Make room for `capacity` positions of one sequence, and for the attention state of `max_rows` of a window.

        Forgets an earlier `terminate`. What `store` kept stays until runs overwrite it.
        """

    def keep(self, ids: Ids, multiple: int) -> int:
        """Keep the stored keys and values of the longest beginning of the sequence `ids` that ends at a multiple, forget
        all others, and return its length."""

    def stored_prefix(self, ids: Sequence[int]) -> int:
        """Length of the longest beginning of `ids` whose keys and values are stored."""

    def run(
        self,
        ids: Ids,
        start: int,
        cache_len: int,
        attn_block: int,
        logit_rows: Ids,
        policy: Policy = EXACT_POLICY,
        *,
        planes: int = BOTH,
        stored_rows: int = 0,
    ) -> Logits:
        """Forward of the window ids [W] at absolute position `start`; writes its K/V there.

        Keys are the cache [0, cache_len) without the window's own positions, and the window itself; key j is
        visible to query i iff j < (i // attn_block + 1) * attn_block. Returns logits [R, vocab_size] of the
        window's rows `logit_rows` [R], un-shifted; the array is valid until the next run. `policy` says how the
        prefix is read, `planes` how many planes of its codes where they lie in two, `stored_rows` how many rows of the
        window, from its first one on, `store` will take. Raises Terminated.
        """

    def run_copies(self, copies: Ids, start: int, cache_len: int, attn_block: int, logit_rows: Ids) -> Logits:
        """Forward of B fillings [B, W] of the window at `start`, each over the cached prefix as in `run` and not seeing
        the others: dense attention, every plane. Logits [R, vocab_size] of the rows `logit_rows` [R]; row i of filling b is
        b * W + i. Valid until the next run. Raises Terminated.

        Nothing is stored, and no state that a later run reads changes. What the caches hold at the window's own positions
        is lost, as after `run`.
        """

    @property
    def batches_copies(self) -> bool:
        """Whether `run_copies` is one run of the graph, whose cost grows slower than B; otherwise it is B runs."""

    def store(self, start: int, end: int) -> None:
        """Positions [start, end), the `stored_rows` of the last run, are final: keep their keys and values. Only once.

        What was stored from `start` on is forgotten first.
        """

    @property
    def store_multiple(self) -> int:
        """`start` of `store` has to be a multiple of it: positions whose keys have their scales in common."""

    @property
    def stores_floats(self) -> bool:
        """Whether `store` keeps floats: a run then reads the same of a position, but for a rounding, where it is stored and
        where it lies in the run's own window. Codes hold less."""

    @property
    def stats(self) -> NDArray[np.float32]:
        """What the last run read, [n_layers, 4]: rows that attended afresh, pages read and pages there are (means over
        kv heads), and page bounds read, in pages' worth of bytes. A model without pages has no layers here."""

    def terminate(self) -> None:
        """From any thread: end the present run, and let every later one fail until `reset`."""

    def discard(self) -> None:
        """Drop the caches, so that nothing a failed run left there can reach the next sequence."""
