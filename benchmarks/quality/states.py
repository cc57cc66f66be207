"""Held-out states: windows of text and task samples with hidden tokens, and what full precision says about them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from dlm_edge.evaluation.masked_nll import text_windows
from dlm_edge.evaluation.tasks import SHORT_TASKS, Sample, make_samples
from dlm_edge.models.transformer import DiffusionTransformer
from dlm_edge.quant.calibration_text import RowCutter, encode
from dlm_edge.quant.quality_probe import hidden_share, predictor
from dlm_edge.quant.states import Batch, Row, StateConfig, make_states

EVALUATION_SEED = 20  # of tasks and of hidden tokens; calibration draws from others


@dataclass(frozen=True, slots=True)
class HiddenTokens:
    """One batch of states and its hidden tokens, n in all.

    `row`, `place` [n] say where a token is read, `target` [n] what it should be, `share` [n] which part of its block
    (or row) is hidden, `window` [n] its row, counted over all batches; `expected` [n, vocab_size] are the log
    probabilities of the model in full precision.
    """

    batch: Batch
    row: Tensor
    place: Tensor
    target: Tensor
    share: Tensor
    window: Tensor
    expected: Tensor


def short_samples(count: int) -> list[Sample]:
    """`count` of every short task, in turn, so that any first part of the list holds all tasks."""
    by_task = [make_samples(name, count, EVALUATION_SEED) for name in SHORT_TASKS]
    return [samples[i] for i in range(count) for samples in by_task]


def evaluation_rows(
    tokenizer: Tokenizer, model: DiffusionTransformer, windows: int, samples: int
) -> dict[str, list[Row]]:
    cutter = RowCutter(model.spec)
    ids, _ = text_windows(tokenizer, windows, cutter.window)
    tasks = short_samples(samples)
    return {
        "text": [Row(tuple(w), 0, cutter.window) for w in ids.tolist()],
        "tasks": [r for s in tasks for r in cutter.whole(encode(tokenizer, s.prompt), encode(tokenizer, s.answer))],
    }


@torch.inference_mode()
def hidden_tokens(model: DiffusionTransformer, rows: list[Row]) -> list[HiddenTokens]:
    """The states of `rows`, answered by `model`."""
    conventions = model.spec.conventions
    found, n_windows = [], 0
    for batch in make_states(rows, conventions, StateConfig(), EVALUATION_SEED):
        window, index = torch.nonzero(batch.ids != batch.originals, as_tuple=True)
        place = predictor(batch, conventions.logit_shift, conventions.block_length)[index]
        window, index, place = (t[place >= 0] for t in (window, index, place))
        target, share = batch.originals[window, index], hidden_share(batch, conventions.block_length)[window, index]
        expected = log_probabilities(model, batch, window, place)
        found.append(HiddenTokens(batch, window, place, target, share, window + n_windows, expected))
        n_windows += len(batch.ids)
    return found


def log_probabilities(model: DiffusionTransformer, batch: Batch, row: Tensor, place: Tensor) -> Tensor:
    """[n, vocab_size], read at `place` of each row; the mask token has no probability."""
    out = model.run_layers(model.embed(batch.ids), batch.positions, batch.attend)[row, place]
    logits: Tensor = model.head(model.final_norm(out))[:, : model.spec.vocab_size]
    logits[:, model.spec.conventions.mask_id] = -math.inf
    return logits.log_softmax(1)
