"""A step model that notes when its runs begin and end."""

from __future__ import annotations

import time
from typing import Any

from dlm_edge.runtime.ort_step_model import OrtStepModel
from dlm_edge.runtime.step_model import Logits


class TimedStepModel(OrtStepModel):
    """`runs`, `stores`: (begin, end) of each so far; `logit_rows` of every run."""

    def __init__(self, *arguments: Any) -> None:
        """Of an OpenSession, a ModelSpec, a cache layout and its group."""
        super().__init__(*arguments)
        self.runs: list[tuple[float, float]] = []
        self.stores: list[tuple[float, float]] = []
        self.logit_rows: list[int] = []

    def run(self, *arguments: Any, **options: Any) -> Logits:
        began = time.perf_counter()
        return self._note(began, super().run(*arguments, **options))

    def run_copies(self, *arguments: Any) -> Logits:
        began = time.perf_counter()
        return self._note(began, super().run_copies(*arguments))

    def _note(self, began: float, logits: Logits) -> Logits:
        self.runs.append((began, time.perf_counter()))
        self.logit_rows.append(len(logits))
        return logits

    def store(self, start: int, end: int) -> None:
        began = time.perf_counter()
        super().store(start, end)
        self.stores.append((began, time.perf_counter()))
