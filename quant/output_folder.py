"""The files around the weights of a quantized checkpoint, and the audit that lets the job count as done."""

from __future__ import annotations

import shlex
from pathlib import Path

import msgspec
import numpy as np

from dlm_edge import files
from dlm_edge.checkpoint import Checkpoint, open_checkpoint
from dlm_edge.checkpoint.shards import INDEX
from dlm_edge.errors import JobError
from dlm_edge.journal import JOURNAL
from dlm_edge.quant.plan import Plan, QuantizeOptions
from dlm_edge.quantized import RECORD_NAME, SCALE_SUFFIX, QuantizationRecord

COPIED = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("LICENSE", "LICENSE.txt", "LICENSE.md"),
)
LICENCE_KEYS = ("license", "license_name", "license_link", "language")


def write_folder(
    folder: Path, source: Checkpoint, options: QuantizeOptions, record: QuantizationRecord, where: dict[str, str]
) -> None:
    """Everything but the weights; `where` maps stored tensor names to files. The record is written last."""
    size = sum((folder / name).stat().st_size for name in set(where.values()))
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    files.write_json(folder / INDEX, index)
    for name in COPIED:
        if (source.path / name).is_file():
            files.write_file(folder / name, (source.path / name).read_bytes())
    files.write_file(folder / "README.md", model_card(source, options, record))
    files.write_file(folder / RECORD_NAME, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def model_card(source: Checkpoint, options: QuantizeOptions, record: QuantizationRecord) -> str:
    front = ["---", f"base_model: {source.name}", *licence_lines(source.path / "README.md"), "library_name: dlm-edge"]
    kept = f"Embedding and head in 8 bits. Kept in their stored type: norms, biases{''.join(', ' + n for n in record.skipped)}."
    fallbacks = f"Rounded to nearest instead: {', '.join(record.fallbacks)}." if record.fallbacks else ""
    body = [
        f"# {source.name}, {record.bits} bits",
        "",
        f"The linear layers of {source.name} ({source.spec.family}) in {record.bits} bits, groups of "
        f"{record.group_size}, quantized with dlm-edge {record.tool_version} ({record.method}). {kept}",
        *([fallbacks] if fallbacks else []),
        "",
        "The licence is the one of the base model. To make this folder again:",
        "",
        "```",
        command_line(source.name, options),
        "```",
    ]
    return "\n".join([*front, "---", "", *body, ""])


def command_line(name: str, options: QuantizeOptions) -> str:
    words = ["dlm-edge", "quantize", name, "-o", "OUT", "--method", options.method]
    words += ["--bits", str(options.bits), "--group-size", str(options.group_size), "--seed", str(options.seed)]
    words += ["--calibration", options.calibration]
    if options.calib_data is not None:
        words += ["--calib-data", options.calib_data.name]
    for pattern in options.skip:
        words += ["--skip", pattern]
    return shlex.join(words)


def licence_lines(card: Path) -> list[str]:
    """Plain `key: value` lines about the licence from the front matter of a model card."""
    if not card.is_file():
        return []
    lines = card.read_text("utf-8", "replace").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in lines[1:]:
        return []
    front = lines[1 : lines.index("---", 1)]
    return [line for line in front if line.split(":")[0] in LICENCE_KEYS and line.split(":", 1)[-1].strip()]


def audit(folder: Path, source: Checkpoint, plan: Plan) -> None:
    """Open the result as any user will, and compare it with the plan. Raises E-QUANT, or what opening raises."""
    result = open_checkpoint(folder)
    stored = 0
    for role in result.roles():
        packed, name = result.load_packed(role), result.tensor_name(role)
        if (packed is not None) != (role in plan.roles + plan.outer):
            raise _failed(name, "is not packed as planned")
        if packed is not None:
            if not np.isfinite(packed.scales).all() or (packed.scales == 0).any():
                raise _failed(name + SCALE_SUFFIX, "holds scales that are zero, NaN or infinite")
            wide = result.stored_bytes(role) - packed.packed.nbytes - 2 * packed.scales.size
            stored -= wide  # float32 scales are the one allowed departure from the planned size
        stored += result.stored_bytes(role)
    if stored != plan.weight_bytes:
        raise _failed(str(folder), f"holds {stored} bytes of weights, planned were {plan.weight_bytes}")
    whole = sum(source.stored_bytes(role) for role in source.roles())
    if stored >= whole:
        raise _failed(str(folder), f"is not smaller than its source ({stored} and {whole} bytes)")


def _failed(what: str, found: str) -> JobError:
    return JobError("E-QUANT", f"final audit: {what} {found}", "this is a bug, please report it")


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and path.name != JOURNAL)
