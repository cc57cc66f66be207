"""README.md of a quantized checkpoint: what it is, whose licence it has, and the command that makes it again."""

from __future__ import annotations

import shlex
from pathlib import Path

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.quant.methods import find_method
from dlm_edge.quant.plan import QuantizeOptions
from dlm_edge.quant.recipes import starting_point
from dlm_edge.quantized import RECORD_NAME, QuantizationRecord

LICENCE_KEYS = ("license", "license_name", "license_link", "language")


def model_card(source: Checkpoint, options: QuantizeOptions, record: QuantizationRecord) -> str:
    front = ["---", f"base_model: {source.name}", *licence_lines(source.path / "README.md"), "library_name: dlm-edge"]
    kept = f"Embedding and head in 8 bits. Kept in floating point: norms, biases{''.join(', ' + n for n in record.skipped)}."
    fallbacks = f"Rounded to nearest instead: {', '.join(record.fallbacks)}." if record.fallbacks else ""
    groups = f"groups of {record.group_size}" if record.group_size else "one scale per output channel"
    beside = settings_beside(options)
    body = [
        f"# {source.name}, {record.bits:g} bits",
        "",
        f"The linear layers of {source.name} ({source.spec.family}) in {record.bits:g} bits, {groups}, "
        f"quantized with dlm-edge {record.tool_version} ({record.method}). {kept}",
        *([fallbacks] if fallbacks else []),
        "",
        "The licence is the one of the base model. To make this folder again:",
        "",
        "```",
        shlex.join(command_words(source.name, options)),
        "```",
    ]
    if beside:
        body += ["", f"Given from Python, where the command has no option: {', '.join(beside)} (see {RECORD_NAME})."]
    return "\n".join([*front, "---", "", *body, ""])


def command_words(name: str, options: QuantizeOptions) -> list[str]:
    """The command with these options. Settings that follow from its recipe and method alone are left out where they
    have no option, or where giving them would be refused."""
    recipe, start = options.recipe, starting_point(options.recipe_name, options.recipe.method)
    words = ["dlm-edge", "quantize", name, "-o", "OUT"]
    if options.recipe_name:
        words += ["--recipe", options.recipe_name]
    form = find_method(recipe.method).form
    words += ["--method", recipe.method]
    if "bits" not in form or recipe.bits != start.bits:
        words += ["--bits", f"{recipe.bits:g}"]
    if "group_size" not in form or recipe.group_size != start.group_size:
        words += ["--group-size", str(recipe.group_size)] if recipe.group_size else []
    if "zero" not in form or recipe.zero != start.zero:
        words += ["--zero", recipe.zero]
    if options.uses_seed:
        words += ["--seed", str(options.seed)]
    if options.needs_states:
        words += ["--calibration", recipe.calibration]
        for key, value in recipe.states.items() if recipe.states != start.states else ():
            words += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    words += ["--rotate"] if recipe.rotate else []
    if recipe.tuning != start.tuning:
        words += ["--tune", str(recipe.tuning["steps"] if recipe.tuning else 0)]
    if options.calib_data is not None:
        words += ["--calib-data", options.calib_data.name]
    if options.calib_tokens is not None:
        words += ["--calib-tokens", str(options.calib_tokens)]
    for pattern in options.skip:
        words += ["--skip", pattern]
    flags = {
        "--imatrix": options.imatrix,
        "--strict": options.strict,
        "--allow-nonfinite": options.allow_nonfinite,
    }
    return words + [flag for flag, given in flags.items() if given]


def settings_beside(options: QuantizeOptions) -> list[str]:
    """What cannot be said in the command: fields of the method's config, and groups of a whole row."""
    recipe, start = options.recipe, starting_point(options.recipe_name, options.recipe.method)
    beside = [f"{key}={value!r}" for key, value in recipe.options.items() if recipe.options != start.options]
    return beside + ([] if recipe.group_size or not start.group_size else ["group_size=0"])


def licence_lines(card: Path) -> list[str]:
    """Plain `key: value` lines about the licence from the front matter of a model card."""
    if not card.is_file():
        return []
    lines = card.read_text("utf-8", "replace").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in lines[1:]:
        return []
    front = lines[1 : lines.index("---", 1)]
    return [line for line in front if line.split(":")[0] in LICENCE_KEYS and line.split(":", 1)[-1].strip()]
