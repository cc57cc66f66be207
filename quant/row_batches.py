"""Rows of equal length as tensors, so that nothing is padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from dlm_edge.families.spec import Conventions
from dlm_edge.quant.state_batch import BATCH_TOKENS, Row


def in_fixed_order(rows: Sequence[Row], block: int) -> list[Row]:
    """Sorted by length and first block, then by content: what is drawn does not depend on the order of the file."""
    return sorted(rows, key=lambda row: (len(row.ids), row.n_prompt // block, row.n_prompt, row.n_content, row.ids))


def alike(rows: Sequence[Row], conventions: Conventions) -> Iterator[list[Row]]:
    """Groups of at most BATCH_TOKENS tokens, with one length and one first block that is not all prompt."""
    block = conventions.block_length
    for _, same in groupby(in_fixed_order(rows, block), lambda row: (len(row.ids), row.n_prompt // block)):
        group = list(same)
        at_once = max(1, BATCH_TOKENS // len(group[0].ids))
        for i in range(0, len(group), at_once):
            yield group[i : i + at_once]


def row_tensors(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """ids, positions that may be hidden, positions that count: [rows, seq]."""
    ids = torch.tensor([row.ids for row in rows])
    place = torch.arange(ids.shape[1])
    may_hide = place >= torch.tensor([row.n_prompt for row in rows])[:, None]
    content = place < torch.tensor([row.n_content for row in rows])[:, None]
    return ids, may_hide, content
