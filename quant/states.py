"""Calibration states: what a diffusion model sees while it decodes, not clean text.

`forward`, block-causal families: every block of a row appears once partly hidden, with all earlier blocks clean and
no later block in sight. One pass carries the clean row and its noisy copy; noisy queries see clean keys of strictly
earlier blocks and the noisy keys of their own. Families that fill sub-blocks from left to right have one active
sub-block per block: what lies before it is clean, what lies after it hidden.
`forward`, full attention: a visible prefix of random length, and part of the rest hidden.
`clean`: no token hidden, the family's own attention pattern (what QDLM, arXiv 2508.14896, calibrated on).

Shares of hidden tokens are stratified over (0, 1]; the number hidden is exact, not Bernoulli.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import Conventions
from dlm_edge.models.transformer import Attend, dense_attention, pattern

MODES = ("forward", "clean")
BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of one text. The first `n_prompt` are never hidden; those from `n_content` on fill up the last
    block: they may be hidden, as they are while decoding, but carry no weight."""

    ids: tuple[int, ...]
    n_prompt: int
    n_content: int


@dataclass(frozen=True, slots=True)
class Batch:
    """ids, originals (what the masks hide) and weights [rows, seq]; positions [seq] repeat where a noisy copy follows
    its clean row."""

    ids: Tensor
    originals: Tensor
    positions: Tensor
    weights: Tensor
    attend: Attend


@dataclass(frozen=True, slots=True, kw_only=True)
class StateConfig:
    """Weights of tokens in the statistics before they are normalised to mean 1; hidden tokens have 1.

    `visible` is for tokens beside hidden ones, `clean` for those of the clean copy, whose keys and values
    the later blocks read.
    """

    mode: str = "forward"
    visible: float = 0.3
    clean: float = 0.3

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            message = f"calibration mode {self.mode!r} is not known"
            raise UsageProblem("E-USAGE", message, f"known: {', '.join(MODES)}")


def make_states(rows: Sequence[Row], conventions: Conventions, config: StateConfig, seed: int) -> list[Batch]:
    """Batches of rows of equal length, so that nothing is padded; the same for the same rows and seed."""
    batches = list(_batches(rows, conventions, config, torch.Generator().manual_seed(seed)))
    counted = sum(int((b.weights > 0).sum()) for b in batches)
    total = sum(float(b.weights.sum()) for b in batches)
    return [replace(b, weights=b.weights * (counted / total)) for b in batches]


def _batches(
    rows: Sequence[Row], conventions: Conventions, config: StateConfig, generator: torch.Generator
) -> Iterator[Batch]:
    sampler = {"full": _full, "block_causal": _two_streams, "causal": _two_streams}[conventions.attention]
    if config.mode == "clean":
        sampler = _clean

    def first_block(row: Row) -> tuple[int, int]:
        return len(row.ids), row.n_prompt // conventions.block_length

    for (length, _), alike in groupby(sorted(rows, key=first_block), first_block):
        group, at_once = list(alike), max(1, BATCH_TOKENS // length)
        for i in range(0, len(group), at_once):
            yield sampler(group[i : i + at_once], conventions, config, generator)


def _clean(rows: list[Row], conventions: Conventions, config: StateConfig, generator: torch.Generator) -> Batch:
    ids, _, content = _tensors(rows)
    positions = torch.arange(ids.shape[1])
    return Batch(ids, ids, positions, content.float(), pattern(conventions, positions))


def _full(rows: list[Row], conventions: Conventions, config: StateConfig, generator: torch.Generator) -> Batch:
    ids, may_hide, content = _tensors(rows)
    visible = (strata(len(rows), generator)[:, None] * may_hide.sum(1, keepdim=True)).ceil() - 1
    may_hide &= may_hide.cumsum(1) > visible
    hidden = hide(may_hide, strata(len(rows), generator), generator)
    weights = token_weights(hidden, content, conventions, config.visible)
    noisy = torch.where(hidden, conventions.mask_id, ids)
    return Batch(noisy, ids, torch.arange(ids.shape[1]), weights, dense_attention(None))


def _two_streams(rows: list[Row], conventions: Conventions, config: StateConfig, generator: torch.Generator) -> Batch:
    block = 1 if conventions.attention == "causal" else conventions.block_length
    ids, may_hide, content = _tensors(rows)
    length = ids.shape[1]
    start = min(row.n_prompt for row in rows) // block * block
    noisy, hidden = hide_in_blocks(ids[:, start:], may_hide[:, start:], conventions, block, generator)
    noisy_weights = token_weights(hidden, content[:, start:], conventions, config.visible)
    in_use = hidden.view(len(rows), -1, block).any(-1).repeat_interleave(block, 1)
    weights = torch.cat([content * config.clean, noisy_weights * in_use], 1)
    positions = torch.cat([torch.arange(length), torch.arange(start, length)])
    attend = dense_attention(two_stream_mask(length, start, block))
    return Batch(torch.cat([ids, noisy], 1), torch.cat([ids, ids[:, start:]], 1), positions, weights, attend)


def two_stream_mask(length: int, start: int, block: int) -> Tensor:
    """Bool [q, k] over `length` clean tokens and the noisy copy of those from `start` (a block border) on."""
    blocks = torch.cat([torch.arange(length), torch.arange(start, length)]) // block
    noisy = torch.arange(len(blocks)) >= length
    sees_clean = torch.where(noisy[:, None], blocks[None] < blocks[:, None], blocks[None] <= blocks[:, None])
    sees_noisy = noisy[:, None] & (blocks[None] == blocks[:, None])
    return torch.where(noisy[None], sees_noisy, sees_clean)


def hide_in_blocks(
    ids: Tensor, may_hide: Tensor, conventions: Conventions, block: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Noisy ids and hidden positions, both [rows, seq]: one state for each block, seq a multiple of `block`."""
    sub = min(conventions.sub_block_length, block)
    allowed = may_hide.reshape(len(may_hide), -1, block)  # [rows, n_blocks, block]
    n_states = allowed.shape[0] * allowed.shape[1]
    active = ((strata(n_states, generator) * (block // sub)).ceil() - 1).view(*allowed.shape[:2], 1)
    place = torch.arange(block) // sub
    inside = (allowed & (place == active)).flatten(0, 1)
    hidden = hide(inside, strata(n_states, generator), generator).view_as(allowed)
    hidden = (hidden | (allowed & (place > active))).flatten(1)
    return torch.where(hidden, conventions.mask_id, ids), hidden


def hide(allowed: Tensor, shares: Tensor, generator: torch.Generator) -> Tensor:
    """Bool like `allowed` [n, width]: in row i exactly ceil(shares[i] * allowed[i].sum()) of its positions."""
    counts = (shares * allowed.sum(1)).ceil()
    order = torch.rand(allowed.shape, generator=generator) + 2.0 * ~allowed
    return (order.argsort(1).argsort(1) < counts[:, None]) & allowed


def strata(count: int, generator: torch.Generator) -> Tensor:
    """One number from each of `count` equal parts of (0, 1], in random order."""
    inside = 1 - torch.rand(count, generator=generator)
    return (torch.randperm(count, generator=generator) + inside) / count


def token_weights(hidden: Tensor, content: Tensor, conventions: Conventions, visible: float) -> Tensor:
    """1 where a prediction is read or a mask stands, `visible` elsewhere, 0 on filling tokens; [rows, seq]."""
    important = hidden.clone()
    if conventions.logit_shift:
        important[:, :-1] |= hidden[:, 1:]  # position i predicts token i + 1
    return torch.where(important, 1.0, visible) * content


def _tensors(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """ids, positions that may be hidden, positions that count: [rows, seq]."""
    ids = torch.tensor([row.ids for row in rows])
    place = torch.arange(ids.shape[1])
    may_hide = place >= torch.tensor([row.n_prompt for row in rows])[:, None]
    content = place < torch.tensor([row.n_content for row in rows])[:, None]
    return ids, may_hide, content
