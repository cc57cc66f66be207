"""A toy model that holds its caller to what StepModel says of storing."""

from __future__ import annotations

import numpy as np

from dlm_edge.runtime.sequence_memory import NO_IDS
from tests.runtime.toy import ToyModel, U


class StrictModel(ToyModel):
    """What a run computes is gone after it, but for the rows that `store` takes, which the run was told. Runs read stored
    positions only. Keeps them between requests, as OrtStepModel does; `stored` has every span that this request stored."""

    def __init__(self, *args, stores_floats=True, **options):
        self.ids, self.left, self.stores_floats = NO_IDS, (0, NO_IDS, None), stores_floats
        self.layers = np.zeros((2, 0), U)
        super().__init__(*args, **options)

    def reset(self, capacity, attention=None, max_rows=1):
        room = max(capacity - self.layers.shape[1], 0)
        self.layers, self.stopped = np.pad(self.layers, [(0, 0), (0, room)]), False
        self.stored = []

    def discard(self):
        super().discard()
        self.ids = NO_IDS

    def stored_prefix(self, ids):
        n = min(len(ids), len(self.ids))
        differ = np.flatnonzero(np.asarray(ids[:n]) != self.ids[:n])
        return int(differ[0]) if differ.size else n

    def keep(self, ids, multiple):
        self.ids = self.ids[: self.stored_prefix(ids) // multiple * multiple]
        return len(self.ids)

    def run(self, ids, start, cache_len, *args, stored_rows=0, **options):
        assert start <= len(self.ids) >= cache_len, "reads what is not stored"
        self.ids = self.ids[:start]
        logits = super().run(ids, start, cache_len, *args, **options)
        rows = self.layers[:, start : start + stored_rows].copy()
        self.layers[:, start : start + len(ids)] = U(12345)
        self.left = (start, np.array(ids[:stored_rows]), rows)
        return logits

    def store(self, start, end):
        first, ids, rows = self.left
        assert (start, end - start) == (first, len(ids)) and len(ids), "other rows than the run was told"
        self.layers[:, start:end], self.ids = rows, np.concatenate([self.ids[:start], ids])
        self.left = (0, NO_IDS, None)
        self.stored.append((start, end))
