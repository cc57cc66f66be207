"""Masked negative log-likelihood: how well hidden tokens are predicted, by the share of tokens that is hidden.

Per block (block-causal families) or per window (full attention) m of n tokens are hidden, m stratified over
1..n. `bound` weights each draw with n / m: an unbiased estimate of the order-agnostic bound of the sequence's NLL,
in nats per token (Uria et al. 2014, "A deep and tractable density estimator"; the form that MDLM and LLaDA train).
Everything is computed by the runtime's own step, so it is the quality of the artefact and not of its source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dlm_edge.evaluation.text import python_sources
from dlm_edge.families.spec import ModelSpec
from dlm_edge.runtime.step_model import FULL_ATTENTION, Logits, StepModel

BUCKETS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
DRAWS_PER_WINDOW = 4  # full attention only: one forward pass each


@dataclass(frozen=True, slots=True)
class MaskedNll:
    """`bound` [windows] in nats per token; `nll` and `tokens` [windows, buckets]: sums over hidden tokens."""

    bound: NDArray[np.float64]
    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]

    def by_bucket(self) -> list[dict[str, Any]]:
        nll, tokens = self.nll.sum(0), self.tokens.sum(0)
        return [
            {"low": low, "high": high, "nll": float(n / t) if t else None, "tokens": int(t)}
            for (low, high), n, t in zip(BUCKETS, nll, tokens, strict=True)
        ]


def standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


def text_windows(tokenizer: Tokenizer, count: int, length: int) -> tuple[NDArray[np.int64], float]:
    """`count` windows [count, length] evenly spaced over the held-out text, and its bytes per token."""
    texts = python_sources(held_out=True)
    encoded = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    ids = np.array([i for e in encoded for i in e], np.int64)
    starts = np.linspace(0, len(ids) - length, count).astype(np.int64)
    windows = np.stack([ids[s : s + length] for s in starts])
    return windows, sum(len(t.encode()) for t in texts) / len(ids)


def masked_nll(model: StepModel, spec: ModelSpec, windows: NDArray[np.int64], seed: int) -> MaskedNll:
    """Hidden positions follow from `seed` alone, so two artefacts are compared on the same states."""
    score = _full_window if spec.conventions.attention == "full" else _block_window
    model.reset(windows.shape[1])
    results = [score(model, spec, w, np.random.default_rng([seed, i])) for i, w in enumerate(windows)]
    return MaskedNll(*(np.stack(part) for part in zip(*results, strict=True)))


def _block_window(
    model: StepModel, spec: ModelSpec, ids: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Every block hidden in part behind the stored keys of those before it; then its clean pass is stored, as the loop does.

    Windows of one block each, so that whatever a cache layout rounds is in the figure.
    """
    length, shift = spec.conventions.block_length, spec.conventions.logit_shift
    starts = np.arange(0, len(ids), length).tolist()
    hidden_counts = rng.permutation(np.resize(np.arange(1, length + 1), len(starts)))
    sizes = [len(ids[start : start + length]) for start in starts]
    drawn = [np.sort(rng.permutation(sizes[b])[: hidden_counts[b]]) for b in reversed(range(len(starts)))][::-1]
    tally = Tally()
    before: Logits = np.empty((0, spec.vocab_size), np.float32)  # of the last clean position
    for start, size, masked in zip(starts, sizes, drawn, strict=True):
        target = ids[start : start + size]
        noisy = target.copy()
        noisy[masked] = spec.conventions.mask_id
        rows = masked - shift
        logits = model.run(noisy, start, start, length, rows[rows >= 0])
        if shift and masked[0] == 0:
            if start == 0:
                masked = masked[1:]  # nothing comes before the first token of all
            else:
                logits = np.concatenate([before, logits])
        tally.add(negative_log_likelihood(logits, target[masked], spec), size)
        last = np.array([size - 1] * shift, np.int64)
        before = model.run(target, start, start, length, last, stored_rows=size).copy()
        model.store(start, start + size)
    return tally.result(len(ids))


def _full_window(
    model: StepModel, spec: ModelSpec, ids: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    shift, n = spec.conventions.logit_shift, len(ids)
    tally = Tally()
    for draw in range(DRAWS_PER_WINDOW):
        count = max(1, math.ceil(n * (draw + rng.random()) / DRAWS_PER_WINDOW))
        masked = np.sort(rng.permutation(np.arange(shift, n))[:count])
        noisy = ids.copy()
        noisy[masked] = spec.conventions.mask_id
        logits = model.run(noisy, 0, 0, FULL_ATTENTION, masked - shift)
        tally.add(negative_log_likelihood(logits, ids[masked], spec), n)
    bound, nll, tokens = tally.result(n)
    return bound / DRAWS_PER_WINDOW, nll, tokens


class Tally:
    def __init__(self) -> None:
        self.bound = 0.0
        self.nll = np.zeros(len(BUCKETS))
        self.tokens = np.zeros(len(BUCKETS), np.int64)

    def add(self, nats: NDArray[np.float64], n: int) -> None:
        """`nats` of the hidden tokens of a block (or window) of `n` tokens."""
        if len(nats) == 0:
            return
        bucket = math.ceil(len(nats) / n * len(BUCKETS)) - 1
        self.bound += float(nats.sum()) * n / len(nats)
        self.nll[bucket] += nats.sum()
        self.tokens[bucket] += len(nats)

    def result(self, n_tokens: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        return np.array(self.bound / n_tokens), self.nll, self.tokens


def negative_log_likelihood(
    logits: NDArray[np.float32], targets: NDArray[np.int64], spec: ModelSpec
) -> NDArray[np.float64]:
    """Nats of each target over the ids that may be produced: the mask token has no probability."""
    scores = logits.astype(np.float64)
    scores[:, spec.conventions.mask_id] = -np.inf
    peak = scores.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(scores - peak).sum(axis=1)) + peak[:, 0]
    nats: NDArray[np.float64] = log_sum - scores[np.arange(len(targets)), targets]
    return nats
