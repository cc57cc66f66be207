"""The files around the weights of a quantized checkpoint, and the audit that lets the job count as done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dlm_edge import files
from dlm_edge.checkpoint import Checkpoint, open_checkpoint
from dlm_edge.checkpoint.shards import INDEX
from dlm_edge.checkpoint.strict_json import read_json_object
from dlm_edge.errors import JobError
from dlm_edge.journal import JOURNAL
from dlm_edge.packed_storage import SCALES
from dlm_edge.quant.model_card import model_card
from dlm_edge.quant.plan import Plan, QuantizeOptions
from dlm_edge.quantized import RECORD_NAME, QuantizationRecord, QuantizedTensor

COPIED = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("LICENSE", "LICENSE.txt", "LICENSE.md"),
)
TIE_KEYS = ("tie_word_embeddings", "weight_tying")


def write_folder(
    folder: Path, plan: Plan, options: QuantizeOptions, record: QuantizationRecord, where: dict[str, str]
) -> None:
    """Everything but the weights; `where` maps stored tensor names to files. The record is written last."""
    source = plan.checkpoint
    size = sum((folder / name).stat().st_size for name in set(where.values()))
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    files.write_json(folder / INDEX, index)
    for name in COPIED:
        if (source.path / name).is_file():
            files.write_file(folder / name, (source.path / name).read_bytes())
    if plan.spec.tied_head != source.spec.tied_head:
        files.write_json(folder / "config.json", untied(source))
    files.write_file(folder / "README.md", model_card(source, options, record))
    files.write_file(folder / RECORD_NAME, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def untied(source: Checkpoint) -> dict[str, Any]:
    """The config of a rotated model: its head is no longer its embedding."""
    config = read_json_object(source.path / "config.json")
    return config | {key: False for key in TIE_KEYS if key in config}


def audit(folder: Path, plan: Plan) -> None:
    """Open the result as any user will, and compare it with the plan. Raises E-QUANT, or what opening raises."""
    result, stored, allowed = open_checkpoint(folder), 0, plan.weight_bytes
    for role in result.roles():
        packed, name = result.load_packed(role), result.tensor_name(role)
        if (packed is not None) != (role in plan.roles + plan.outer):
            raise _failed(name, "is not packed as planned")
        if isinstance(packed, QuantizedTensor):
            if not np.isfinite(packed.scales).all() or (packed.scales == 0).any():
                raise _failed(name + SCALES, "holds scales that are zero, NaN or infinite")
            # Two departures are allowed: float32 where float16 is too coarse, and outlier columns.
            allowed += 2 * packed.scales.size * (2 if packed.zero_kind == "float" else 1)
            if packed.outliers is not None:
                allowed += 8 * len(packed.outliers.columns) + 4 * packed.outliers.weights.size
        elif result.dtype(role) == "F32":
            allowed += 2 * int(np.prod(result.shape(role)))  # norms that folding or tuning has changed
        stored += result.stored_bytes(role)
    if not plan.weight_bytes * 0.9 < stored <= allowed:
        raise _failed(str(folder), f"holds {stored} bytes of weights, planned were {plan.weight_bytes}")
    source = plan.checkpoint
    whole = sum(source.stored_bytes(role) for role in source.roles())
    if stored >= whole:
        raise _failed(str(folder), f"is not smaller than its source ({stored} and {whole} bytes)")


def _failed(what: str, found: str) -> JobError:
    return JobError("E-QUANT", f"final audit: {what} {found}", "this is a bug, please report it")


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and path.name != JOURNAL)
