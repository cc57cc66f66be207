"""Calibration states: what a diffusion model sees while it decodes, not clean text. The samplers by name.

`clean` hides nothing, `forward` hides tokens of real text, `rollout` keeps states that the runtime's own schedule
visited. One more is one file beside clean_states.py, its test, one line in MODES and one in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dlm_edge.families.spec import Conventions
from dlm_edge.models.transformer import DiffusionTransformer
from dlm_edge.quant.clean_states import clean_batches
from dlm_edge.quant.forward_states import forward_batches
from dlm_edge.quant.rollout_states import rollout_batches
from dlm_edge.quant.state_batch import BATCH_TOKENS, MODES, QUOTAS, Batch, Row, StateConfig
from dlm_edge.quant.token_weights import normalised

__all__ = ["BATCH_TOKENS", "MODES", "QUOTAS", "Batch", "Row", "StateConfig", "States", "make_states", "sample_states"]


@dataclass(frozen=True, slots=True)
class States:
    """Batches with weights of mean 1; `notes` are plain sentences on what did not come out as asked."""

    batches: list[Batch]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Request:
    rows: list[Row]
    conventions: Conventions
    config: StateConfig
    seed: int
    model: DiffusionTransformer | None
    n_tokens: int | None


def _clean(request: Request) -> States:
    return States(list(clean_batches(request.rows, request.conventions)), [])


def _forward(request: Request) -> States:
    generator = torch.Generator().manual_seed(request.seed)
    parts = forward_batches(request.rows, request.conventions, request.config, generator, request.model)
    return States(list(parts), [])


def _rollout(request: Request) -> States:
    assert request.model is not None, "rollout needs the model"
    n_tokens = request.n_tokens or sum(row.n_content for row in request.rows)
    return States(*rollout_batches(request.rows, request.model, request.config, request.seed, n_tokens))


SAMPLERS: dict[str, Callable[[Request], States]] = {"forward": _forward, "rollout": _rollout, "clean": _clean}
assert tuple(SAMPLERS) == MODES


def sample_states(
    rows: Sequence[Row],
    conventions: Conventions,
    config: StateConfig,
    seed: int,
    *,
    model: DiffusionTransformer | None = None,
    n_tokens: int | None = None,
) -> States:
    """The same for the same rows, in whatever order, and the same seed.

    `model` in full precision is needed where `config.needs_model`; `n_tokens` is how many tokens rollout's noisy
    blocks (full attention: canvases) shall have together, by default as many as the rows. Raises E-NUM.
    """
    states = SAMPLERS[config.mode](Request(list(rows), conventions, config, seed, model, n_tokens))
    return States(normalised(states.batches), states.notes)


def make_states(
    rows: Sequence[Row],
    conventions: Conventions,
    config: StateConfig,
    seed: int,
    *,
    model: DiffusionTransformer | None = None,
    n_tokens: int | None = None,
) -> list[Batch]:
    """The batches of `sample_states`."""
    return sample_states(rows, conventions, config, seed, model=model, n_tokens=n_tokens).batches
