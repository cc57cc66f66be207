"""`clean`: no token hidden, the family's own attention (what QDLM, arXiv 2508.14896, calibrated on)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dlm_edge.families.spec import Conventions
from dlm_edge.models.transformer import pattern
from dlm_edge.quant.row_batches import alike, row_tensors
from dlm_edge.quant.state_batch import Batch, Row


def clean_batches(rows: list[Row], conventions: Conventions) -> Iterator[Batch]:
    for group in alike(rows, conventions):
        ids, _, content = row_tensors(group)
        positions = torch.arange(ids.shape[1])
        yield Batch(ids, ids, positions, content.float(), pattern(conventions, positions))
