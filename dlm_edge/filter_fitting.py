"""Fitting the filter of learn2pd to traces: a perceptron of one hidden layer, cross-entropy, Adam. NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlm_edge.filter_traces import Traces
from dlm_edge.runtime.learned_filter import NAMES, SATURATED, Filter

Floats = NDArray[np.float64]
N_PARAMETERS = 2048  # about: the paper's filter has 2,112 for blocks of 32
BATCH = 64  # steps
RATE, FIRST_DECAY, SECOND_DECAY, TINY = 3e-3, 0.9, 0.999, 1e-8  # of Adam (Kingma and Ba, arXiv 1412.6980)
EPOCHS = 60


def fit(traces: Traces, *, seed: int, epochs: int = EPOCHS, say: Callable[[str], None] = lambda _: None) -> Filter:
    """The same traces and seed make the same filter. The rate falls to 0 along half a cosine."""
    rng = np.random.default_rng(seed)
    weights = initial(traces.confidence.shape[1], rng)
    first, second = ({name: np.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    n, step = len(traces.confidence), 0
    n_steps = epochs * -(-n // BATCH)
    for epoch in range(epochs):
        order, total = rng.permutation(n), 0.0
        for at in range(0, n, BATCH):
            rows, step = order[at : at + BATCH], step + 1
            loss, gradients = loss_and_gradients(weights, traces, rows)
            total += loss * len(rows)
            rate = RATE * (1 + np.cos(np.pi * step / n_steps)) / 2
            for name, gradient in gradients.items():
                first[name] += (1 - FIRST_DECAY) * (gradient - first[name])
                second[name] += (1 - SECOND_DECAY) * (gradient**2 - second[name])
                mean, spread = first[name] / (1 - FIRST_DECAY**step), second[name] / (1 - SECOND_DECAY**step)
                weights[name] -= rate * mean / (np.sqrt(spread) + TINY)
        if (epoch + 1) % 20 == 0 or epoch + 1 == epochs:
            say(f"training  epoch {epoch + 1} of {epochs}, loss {total / n:.4f}")
    return Filter(**{name: weights[name].astype(np.float32) for name in NAMES})


def initial(block_length: int, rng: np.random.Generator) -> dict[str, Floats]:
    n_hidden = max(round(N_PARAMETERS / (2 * block_length)), 8)
    return {
        "hidden_weight": rng.standard_normal((block_length, n_hidden)) * np.sqrt(2 / block_length),
        "hidden_bias": np.zeros(n_hidden),
        "slot_weight": rng.standard_normal((n_hidden, block_length)) * np.sqrt(1 / n_hidden),
        "slot_bias": np.zeros(block_length),
    }


def loss_and_gradients(
    weights: dict[str, Floats], traces: Traces, rows: NDArray[np.int64]
) -> tuple[float, dict[str, Floats]]:
    """Mean cross-entropy over the scored slots of the rows, in nats."""
    seen, is_scored = traces.confidence[rows], traces.is_scored[rows]
    before = seen @ weights["hidden_weight"] + weights["hidden_bias"]
    hidden = np.maximum(before, 0.0)
    logits = np.clip(hidden @ weights["slot_weight"] + weights["slot_bias"], -SATURATED, SATURATED)
    right = traces.is_right[rows]
    losses = np.logaddexp(0.0, np.where(right, -logits, logits))
    n_slots = is_scored.sum()
    at_logits = (1.0 / (1.0 + np.exp(-logits)) - right) * is_scored / n_slots
    at_hidden = at_logits @ weights["slot_weight"].T * (before > 0)
    gradients = {
        "hidden_weight": seen.T @ at_hidden,
        "hidden_bias": at_hidden.sum(0),
        "slot_weight": hidden.T @ at_logits,
        "slot_bias": at_logits.sum(0),
    }
    return float(losses[is_scored].sum() / n_slots), gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterQuality:
    """Shares of scored slots. A filter that always says yes is right in `share_right` of them."""

    n_slots: int
    share_right: float  # predictions that are final: the balance of the two classes
    accuracy: float  # of the answer "more likely than not"
    accepted: float  # at tau
    precision: float  # share of the accepted that are final; 1 where none is


def measure(found: Filter, traces: Traces, tau: float) -> FilterQuality:
    scored = traces.is_scored
    answers, right = found.probabilities(traces.confidence)[scored], traces.is_right[scored]
    accepted = answers > tau
    return FilterQuality(
        n_slots=int(scored.sum()),
        share_right=float(right.mean()),
        accuracy=float(((answers > 0.5) == right).mean()),
        accepted=float(accepted.mean()),
        precision=float(right[accepted].mean()) if accepted.any() else 1.0,
    )
