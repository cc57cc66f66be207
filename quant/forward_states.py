"""`forward`: the noising process of the family applied to real text.

Block-causal families: every block of a row appears partly hidden, with all earlier blocks clean and no later block
in sight. One pass carries the clean row and its noisy copies, one per draw. Families that fill sub-blocks from left
to right have one active sub-block per block: what lies before it is clean, what lies after it hidden. Where the first
token of a block comes from finished text before the block's first step, it is never hidden.
Full attention: a visible prefix of random length, and part of the rest hidden (the masked calibration of Quant-dLLM,
arXiv 2510.03274, with stratified shares); one row per draw.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dlm_edge.families.spec import Conventions
from dlm_edge.models.transformer import DiffusionTransformer, dense_attention
from dlm_edge.quant.masking import hide, shares, strata
from dlm_edge.quant.row_batches import alike, row_tensors
from dlm_edge.quant.state_attention import stream_mask
from dlm_edge.quant.state_batch import QUOTAS, Batch, Row, StateConfig
from dlm_edge.quant.token_weights import confidences, token_weights


def forward_batches(
    rows: list[Row],
    conventions: Conventions,
    config: StateConfig,
    generator: torch.Generator,
    model: DiffusionTransformer | None,
) -> Iterator[Batch]:
    for group in alike(rows, conventions):
        if conventions.attention == "full":
            for _ in range(config.draws):
                yield whole_canvas(group, conventions, config, generator, model)
        else:
            yield noisy_copies(group, conventions, config, generator, model)


def whole_canvas(
    rows: list[Row],
    conventions: Conventions,
    config: StateConfig,
    generator: torch.Generator,
    model: DiffusionTransformer | None,
) -> Batch:
    ids, may_hide, content = row_tensors(rows)
    length, shift = ids.shape[1], conventions.logit_shift
    visible = (strata(len(rows), generator)[:, None] * may_hide.sum(1, keepdim=True)).ceil() - 1
    may_hide &= may_hide.cumsum(1) > visible
    hidden = hide(may_hide, shares(len(rows), QUOTAS[config.quota], generator), generator)
    noisy, positions, attend = (
        torch.where(hidden, conventions.mask_id, ids),
        torch.arange(length),
        dense_attention(None),
    )
    sure = None
    if config.confidence:
        assert model is not None, "confidence weights need the model"
        sure = confidences(model, noisy, positions, attend, hidden, torch.arange(length) - shift)
    weights = token_weights(hidden, content, shift=shift, block=length, visible=config.visible, confidence=sure)
    return Batch(noisy, ids, positions, weights, attend)


def noisy_copies(
    rows: list[Row],
    conventions: Conventions,
    config: StateConfig,
    generator: torch.Generator,
    model: DiffusionTransformer | None,
) -> Batch:
    block = 1 if conventions.attention == "causal" else conventions.block_length
    ids, may_hide, content = row_tensors(rows)
    length, shift, draws = ids.shape[1], conventions.logit_shift, config.draws
    start = min(row.n_prompt for row in rows) // block * block
    originals = torch.cat([ids, ids[:, start:].repeat(1, draws)], 1)
    hidden = torch.cat(
        [torch.zeros_like(may_hide)]
        + [hide_in_blocks(may_hide[:, start:], start, conventions, config.quota, generator) for _ in range(draws)],
        1,
    )
    noisy = torch.where(hidden, conventions.mask_id, originals)
    positions = torch.cat([torch.arange(length), torch.arange(start, length).repeat(draws)])
    copy = torch.cat([torch.zeros(length), torch.arange(1, draws + 1).repeat_interleave(length - start)])
    attend = dense_attention(stream_mask(positions, copy, block))
    sure = None
    if config.confidence:
        assert model is not None, "confidence weights need the model"
        sure = confidences(model, noisy, positions, attend, hidden, predicted_from(positions, length, block, shift))
    weights = token_weights(
        hidden[:, length:],
        content[:, start:].repeat(1, draws),
        shift=shift,
        block=block,
        visible=config.visible,
        confidence=None if sure is None else sure[:, length:],
    )
    in_use = hidden[:, length:].reshape(len(hidden), -1, block).any(-1).repeat_interleave(block, 1)
    weights = torch.cat([content * clean_weights(length, conventions, config.clean), weights * in_use], 1)
    return Batch(noisy, originals, positions, weights, attend)


def hide_in_blocks(
    may_hide: Tensor, start: int, conventions: Conventions, quota: str, generator: torch.Generator
) -> Tensor:
    """Hidden positions [rows, seq], one state for each block; seq is a multiple of the block and begins at `start`."""
    block = 1 if conventions.attention == "causal" else conventions.block_length
    sub = min(conventions.sub_block_length, block)
    allowed = may_hide.reshape(len(may_hide), -1, block).clone()  # [rows, n_blocks, block]
    if conventions.first_token_rule == "previous_logit":
        allowed[:, 0 if start else 1 :, 0] = False
    blocks = allowed.flatten(0, 1)
    n_later = (block - 1 - torch.arange(block)) // sub  # sub-blocks after a position's own: the last is hidden first
    share = shares(len(blocks), QUOTAS[quota], generator)
    return hide(blocks, share, generator, n_later).view_as(allowed).flatten(1)


def clean_weights(length: int, conventions: Conventions, weight: float) -> Tensor:
    """[length]: `weight`, and 1 where a finished block ends with the prediction of the next block's first token."""
    weights = torch.full((length,), weight)
    if conventions.first_token_rule == "previous_logit" and conventions.attention == "block_causal":
        weights[conventions.block_length - 1 :: conventions.block_length] = 1.0
    return weights


def predicted_from(positions: Tensor, n_clean: int, block: int, shift: int) -> Tensor:
    """[seq] the place whose logits predict each place; for the first of a noisy block that is clean text."""
    place = torch.arange(len(positions))
    if not shift:
        return place
    noisy_first = (place >= n_clean) & (positions % block == 0)
    return torch.where(noisy_first, positions, place) - 1
