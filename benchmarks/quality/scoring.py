"""Masked NLL and KL divergence of a quantized model on the states of `states.py`, one entry per window and bucket."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlm_edge.evaluation.masked_nll import BUCKETS
from dlm_edge.models.transformer import DiffusionTransformer

from .states import HiddenTokens, log_probabilities

# name -> [windows, buckets]: sums over hidden tokens of `tokens` (their number), `nats` (of full precision), `increase`,
# `divergence` and `changed` (the most probable token is another one)
Arrays = dict[str, NDArray[np.float64]]


@torch.inference_mode()
def score(model: DiffusionTransformer, states: list[HiddenTokens]) -> Arrays:
    n_windows, n_buckets = int(states[-1].window.max()) + 1, len(BUCKETS)
    sums = {key: np.zeros(n_windows * n_buckets) for key in ("tokens", "nats", "increase", "divergence", "changed")}
    for hidden in states:
        before, after = hidden.expected, log_probabilities(model, hidden.batch, hidden.row, hidden.place)
        nats, new_nats = (-p.gather(1, hidden.target[:, None])[:, 0].double() for p in (before, after))
        terms = torch.where(before > -math.inf, before.exp() * (before - after), 0.0)
        bucket = (hidden.share * n_buckets).ceil().long() - 1
        cell = (hidden.window * n_buckets + bucket).numpy()
        values = {
            "tokens": torch.ones_like(nats),
            "nats": nats,
            "increase": new_nats - nats,
            "divergence": terms.sum(1).double(),
            "changed": (before.argmax(1) != after.argmax(1)).double(),
        }
        for key, value in values.items():
            sums[key] += np.bincount(cell, value.numpy(), n_windows * n_buckets)
    return {key: value.reshape(n_windows, n_buckets) for key, value in sums.items()}


def summary(arrays: Arrays) -> dict[str, Any]:
    """NLL increases in percent of full precision's, KL divergences in 1e-3 nats; `*_by_bucket` by share hidden."""
    nats, tokens = arrays["nats"].sum(0), arrays["tokens"].sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        by_bucket = {
            "increase_by_bucket": (100 * arrays["increase"].sum(0) / nats).tolist(),
            "divergence_by_bucket": (1e3 * arrays["divergence"].sum(0) / tokens).tolist(),
        }
    return {
        "nll": float(nats.sum() / tokens.sum()),
        "increase": percent(arrays["increase"], arrays),
        "increase_error": percent_error(arrays["increase"], arrays),
        "divergence": float(1e3 * arrays["divergence"].sum() / tokens.sum()),
        "divergence_error": percent_error(arrays["divergence"], arrays) / 100 * 1e3 * nats.sum() / tokens.sum(),
        "changed": float(100 * arrays["changed"].sum() / tokens.sum()),
        **by_bucket,
    }


def percent(increase: NDArray[np.float64], arrays: Arrays) -> float:
    """Sums of nats [windows, buckets] as percent of full precision's."""
    return float(100 * increase.sum() / arrays["nats"].sum())


def percent_error(increase: NDArray[np.float64], arrays: Arrays) -> float:
    """Standard error of `percent` with windows as the independent draws (ratio estimator over tokens).

    For a paired comparison give the difference of two increases: what both share cancels before the error is taken.
    """
    counts, values = arrays["tokens"].sum(1), increase.sum(1)
    residual = values - counts * values.sum() / counts.sum()
    return float(100 * residual.std(ddof=1) * math.sqrt(len(counts)) / arrays["nats"].sum())
