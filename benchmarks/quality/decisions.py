"""What denoising decides: exact match on the tasks, and commit flips against full precision.

A flip is a state of full precision's own denoising runs in which the other model would commit other positions or
other tokens; the definition is dlm_edge/evaluation/commit_flips.py. Every state is judged by itself, so one early
difference does not count again in every later step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from dlm_edge.evaluation.evaluate import answer_length
from dlm_edge.evaluation.tasks import Sample
from dlm_edge.models.transformer import DiffusionTransformer
from dlm_edge.quant.calibration_text import encode

from .denoising import THRESHOLD, Canvases, Step, choose, decode, predict
from .prefix import Prefix


@dataclass(frozen=True, slots=True)
class Recording:
    """The states of all denoising runs of full precision, and the canvases as they were in the end."""

    steps: Step  # of every run, one after the other
    canvases: Canvases
    end: Tensor


def prompts_of(tokenizer: Tokenizer, samples: Sequence[Sample]) -> tuple[list[list[int]], list[int]]:
    """Prompt ids, and room for each answer as `dlm-edge eval` gives it."""
    return [encode(tokenizer, s.prompt) for s in samples], [answer_length(tokenizer, s) for s in samples]


def record(model: DiffusionTransformer, tokenizer: Tokenizer, samples: Sequence[Sample]) -> Recording:
    steps: list[Step] = []
    canvases = decode(model, *prompts_of(tokenizer, samples), on_step=steps.append)
    parts = ([getattr(step, name) for step in steps] for name in Step.__slots__)
    return Recording(Step(*(torch.cat(part) for part in parts)), canvases, canvases.end)


@torch.inference_mode()
def count_flips(model: DiffusionTransformer, recording: Recording) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Flips and states of every prompt, [prompts] each."""
    steps, canvases = recording.steps, recording.canvases
    prefix = None
    if model.spec.conventions.attention == "block_causal":
        prefix = Prefix(model, canvases.ids, int(steps.start.max()))
    confidence, tokens = predict(model, steps.canvas, steps.start, recording.end[steps.row], prefix, steps.row)
    places = steps.start[:, None] + torch.arange(canvases.block)
    masked = steps.canvas.gather(1, places) == canvases.mask_id
    chosen = choose(confidence, masked, THRESHOLD)
    same = (chosen == steps.chosen) & (~chosen | (tokens == steps.tokens))
    flipped = (~same.all(1)).double().numpy()
    rows, n = steps.row.numpy(), len(canvases.ids)
    return np.bincount(rows, flipped, n).astype(np.float64), np.bincount(rows, minlength=n).astype(np.float64)


def exact_match(model: DiffusionTransformer, tokenizer: Tokenizer, samples: Sequence[Sample]) -> NDArray[np.float64]:
    """1 or 0 for every sample."""
    canvases = decode(model, *prompts_of(tokenizer, samples))
    texts = [tokenizer.decode(canvases.answer(i)) for i in range(len(samples))]
    return np.array([s.is_correct(text) for s, text in zip(samples, texts, strict=True)], np.float64)
