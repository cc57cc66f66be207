"""The README.md of a bundle: what it is, where it comes from, and the command that makes it again."""

from __future__ import annotations

from typing import Any

from dlm_edge.checkpoint import Checkpoint


def model_card(source: Checkpoint, target: str, profile: str, parity: dict[str, Any]) -> str:
    spec, record = source.spec, source.record
    quantization = "none" if record is None else f"{record.method}, {record.bits} bits, groups of {record.group_size}"
    lines = [
        f"# {source.name} for dlm-edge",
        "",
        f"- family: {spec.family} ({spec.architecture}), {spec.n_layers} layers, hidden size {spec.hidden_size}",
        f"- attention: {spec.conventions.attention}, block length {spec.conventions.block_length}",
        f"- quantization: {quantization}",
        f"- target: {target}" + (f", profile {profile}" if profile else ""),
        f"- largest difference to the source model: {parity['max_rel_error']:.1e} of the largest logit",
        "",
        "The licence is the one of the source model; its licence file, where it has one, is in this folder.",
        "",
        "```",
        f"dlm-edge export {source.name} -o BUNDLE --target {target}" + (f" --profile {profile}" if profile else ""),
        "dlm-edge generate BUNDLE -p TEXT",
        "```",
        "",
    ]
    return "\n".join(lines)
