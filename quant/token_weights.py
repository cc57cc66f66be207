"""What each token counts in the statistics of a state: filling 0, visible little, hidden by confidence; mean 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dlm_edge.errors import JobError
from dlm_edge.models.transformer import Attend, DiffusionTransformer
from dlm_edge.quant.state_batch import Batch

LEAST_HIDDEN = 0.5  # 0.5 + confidence: DLLMQuant's certainty-guided weights, arXiv 2508.14090
HEAD_ROWS = 512  # rows of logits at a time


def token_weights(
    hidden: Tensor, content: Tensor, *, shift: int, block: int, visible: float, confidence: Tensor | None = None
) -> Tensor:
    """[rows, seq]: `visible` where neither a mask stands nor a prediction is read, 0 where `content` is 0.

    With shift 1 position i predicts token i + 1 of its block; the first token of a block of `block` tokens is
    predicted by finished text. `confidence` [rows, seq] of the predictions of hidden tokens; without it they weigh 1.
    """
    value = torch.where(hidden, 1.0 if confidence is None else LEAST_HIDDEN + confidence, 0.0)
    if shift:
        in_blocks = value.reshape(len(value), -1, block)
        predicted = torch.cat([in_blocks[..., 1:], torch.zeros_like(in_blocks[..., :1])], -1).flatten(1)
        value = torch.maximum(value, predicted)
    return torch.where(value > 0, value, visible) * content


def normalised(batches: Sequence[Batch]) -> list[Batch]:
    """The same batches with the weights scaled to a mean of 1 over all tokens that have one."""
    counted = sum(int((b.weights > 0).sum()) for b in batches)
    total = sum(float(b.weights.double().sum()) for b in batches)
    assert counted, "states without a single weighted token"
    return [replace(b, weights=b.weights * (counted / total)) for b in batches]


@torch.inference_mode()
def confidences(
    model: DiffusionTransformer, ids: Tensor, positions: Tensor, attend: Attend, hidden: Tensor, source: Tensor
) -> Tensor:
    """[rows, seq] probability of the model's own prediction for each hidden token, 0 for the others.

    `source` [seq] is the place whose logits predict each place; -1: none, so the confidence is 0. Raises E-NUM.
    """
    row, place = torch.nonzero(hidden & (source >= 0), as_tuple=True)
    out = model.run_layers(model.embed(ids), positions, attend)
    found = torch.zeros(hidden.shape)
    found[row, place] = predictions(model, out[row, source[place]])[0]
    return found


def predictions(model: DiffusionTransformer, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence and id predicted from the last layer's output [n, hidden_size], the lowest id among equals.

    As the runtime scores: float32, ids beyond the vocabulary cut off, the mask id without probability. Raises E-NUM.
    """
    vocab_size, mask_id = model.spec.vocab_size, model.spec.conventions.mask_id
    parts = []
    for some in torch.split(hidden, HEAD_ROWS):
        scores = model.head(model.final_norm(some))[:, :vocab_size].float()
        if mask_id < vocab_size:
            scores[:, mask_id] = float("-inf")
        if scores.isnan().any() or (scores == float("inf")).any():
            raise JobError("E-NUM", "NaN or infinite logits on the calibration states", "check the source weights")
        best, ids = scores.max(-1)
        parts.append(((best - scores.logsumexp(-1)).exp(), ids))
    if not parts:
        return torch.empty(0), torch.empty(0, dtype=torch.long)
    confidence, ids = (torch.cat(part) for part in zip(*parts, strict=True))
    return confidence, ids
