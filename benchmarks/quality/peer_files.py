"""What a peer's adapter reads and writes: float weights and calibration states out, dequantized weights in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.models.transformer import Attend
from dlm_edge.quant.calibration import read_tokenizer
from dlm_edge.quant.calibration_text import default_rows, repeated
from dlm_edge.quant.states import StateConfig, make_states

STATE_TOKENS = 32768  # content tokens that our own methods calibrate on by default


def write_weights(source: Checkpoint, path: Path) -> None:
    weights = {role: torch.from_numpy(source.load(role)) for role in source.roles()}
    save_file(weights, path, {"spec": msgspec.json.encode(source.spec).decode()})


def write_states(source: Checkpoint, path: Path, seed: int) -> None:
    """The texts that our methods calibrate on with this seed, clean and as masked states."""
    data = default_rows(read_tokenizer(source), source.spec, STATE_TOKENS, seed)
    rows = {f"rows.{i}": torch.tensor(row.ids[: row.n_content]) for i, row in enumerate(data.rows)}
    batches = make_states(repeated(data.rows, STATE_TOKENS), source.spec.conventions, StateConfig(), seed)
    tensors = dict(rows)
    for i, batch in enumerate(batches):
        parts = {"ids": batch.ids, "positions": batch.positions, "weights": batch.weights}
        parts["mask"] = visible(batch.attend, len(batch.positions))
        tensors |= {f"batch.{i}.{name}": part.clone().contiguous() for name, part in parts.items()}
    save_file(tensors, path, {"rows": str(len(rows)), "batches": str(len(batches))})


def visible(attend: Attend, length: int) -> Tensor:
    """Bool [query, key] of an attention pattern: equal scores give every visible key the same part of the result."""
    equal, marked = torch.zeros(1, 1, length, length), torch.eye(length)[None, None]
    return attend(equal, equal, marked)[0, 0] > 0


def read_result(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights by role, and what the adapter says about them."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["about"])
