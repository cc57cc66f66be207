"""`estimate`: what quantizing, exporting and running a model will take, from headers alone; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dlm_edge.bundle import is_bundle, open_bundle
from dlm_edge.cache_choice import parse_cache
from dlm_edge.checkpoint import Checkpoint, open_checkpoint
from dlm_edge.errors import UsageProblem
from dlm_edge.exported_size import FLOAT_BYTES, PackedForm, as_exported, exported_bytes, forms_of, latent_bytes
from dlm_edge.families.spec import ModelSpec
from dlm_edge.memory import available_bytes
from dlm_edge.run_memory import RunMemory, fitting_layouts, run_memory

DEFAULT_RECIPE, NO_RECIPE = "w4", "none"
CONTEXTS = (1024, 4096, 16384)
EXPORT_PROCESS_BYTES = 300 << 20  # Python, torch, onnx and ONNX Runtime
TEXTS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE", "LICENSE.txt", "LICENSE.md")
GRAPH_BYTES_PER_LAYER = 16 << 10


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of `dlm-edge estimate --json`. `quantize` and `export` are None where there is nothing left to do."""

    model: str
    kind: str  # checkpoint, quantized or bundle
    recipe: str | None  # what `export` and `run` take for done; None: the model as it is
    quantize: dict[str, Any] | None  # {ram_bytes, disk_bytes, seconds}
    export: dict[str, Any] | None  # {ram_bytes, disk_bytes}
    run: list[RunMemory]
    available_bytes: int | None  # memory that this machine has to give now


@dataclass(frozen=True, slots=True)
class Exported:
    """What the runtime will open: the model, its weights, and the layout they were exported with, if they were."""

    spec: ModelSpec
    weight_bytes: int
    own: tuple[str, int] | None = None


def estimate(
    model: str | Path, *, contexts: Sequence[int] = (), recipe: str | None = None, caches: Sequence[str] = ()
) -> Estimate:
    """Memory, disk and time for a checkpoint, a quantized checkpoint or a bundle, for the target CPU.

    `contexts` in tokens, prompt and text together (default: those of CONTEXTS that the model has, else all it has);
    `recipe` of quantization, default w4 where weights are in floating point, "none" for leaving them so; `caches` as
    LAYOUT[,group=N], default: all that fit the model. Raises E-USAGE, E-QUANT, E-PARAM, E-CONTEXT, and what opening raises.
    """
    path = Path(model)
    quantizing, exporting = None, None
    if is_bundle(path):
        if recipe is not None:
            raise UsageProblem("E-USAGE", f"{model} is a bundle, which is not quantized", "leave --recipe out")
        bundle = open_bundle(path)
        manifest, kind = bundle.manifest, "bundle"
        weights = sum(entry.size for entry in manifest.files if entry.name == "model.onnx.data")
        exported = Exported(manifest.model, weights, (manifest.cache_layout, manifest.cache_group))
    else:
        checkpoint = open_checkpoint(model)
        kind = "checkpoint" if checkpoint.record is None else "quantized"
        if recipe is None and checkpoint.record is None:
            recipe = DEFAULT_RECIPE
        if recipe == NO_RECIPE:
            recipe = None
        if recipe is None:
            exported = Exported(checkpoint.spec, exported_bytes(checkpoint.spec, forms_of(checkpoint)))
        else:
            exported, quantizing = _quantized(checkpoint, recipe)
        exporting = _export(exported, checkpoint.path)
    sizes = _contexts(exported.spec, contexts)
    chosen = _layouts(exported, caches)
    return Estimate(
        model=str(model),
        kind=kind,
        recipe=recipe,
        quantize=quantizing,
        export=exporting,
        run=[_run(exported, layout, group, context) for context in sizes for layout, group in chosen],
        available_bytes=available_bytes(),
    )


def _quantized(checkpoint: Checkpoint, recipe: str) -> tuple[Exported, dict[str, Any]]:
    """The model after its quantization, and what that takes; raises E-QUANT and E-USAGE as the job would."""
    from dlm_edge.quant.memory_estimate import estimate_ram
    from dlm_edge.quant.pipeline import make_options
    from dlm_edge.quant.plan import OUTER_BITS, make_plan
    from dlm_edge.quant.resources import SMALL_FILES_BYTES
    from dlm_edge.quant.time_estimate import estimate_seconds

    options = make_options(recipe=recipe)
    plan, form = make_plan(checkpoint, options), options.recipe
    linears = PackedForm(form.bits, form.group_size, form.zero, is_codebook=form.method in ("nf4", "fp4"))
    forms = dict.fromkeys(plan.roles, linears)
    forms |= dict.fromkeys(plan.outer, PackedForm(OUTER_BITS, plan.outer_group))
    needs = {
        "ram_bytes": estimate_ram(plan, options),
        "disk_bytes": plan.weight_bytes + SMALL_FILES_BYTES,
        "seconds": estimate_seconds(plan, options),
    }
    return Exported(plan.spec, exported_bytes(plan.spec, as_exported(forms))), needs


def _export(exported: Exported, source: Path) -> dict[str, Any]:
    """Weights are streamed; the comparison with the source then opens the graph, and holds the embedding and a layer."""
    spec = exported.spec
    texts = sum((source / name).stat().st_size for name in TEXTS if (source / name).is_file())
    layer = spec.hidden_size * (2 * spec.q_width + 2 * spec.kv_width + 3 * spec.intermediate_size)
    held = FLOAT_BYTES * (spec.embedding_rows * spec.hidden_size + layer)
    return {
        "ram_bytes": EXPORT_PROCESS_BYTES + exported.weight_bytes + held,
        "disk_bytes": exported.weight_bytes + GRAPH_BYTES_PER_LAYER * spec.n_layers + texts,
    }


def _contexts(spec: ModelSpec, asked: Sequence[int]) -> list[int]:
    for context in asked:
        if context < 1:
            raise UsageProblem("E-PARAM", f"a context of {context} tokens was asked for", "choose 1 or more")
        if context > spec.max_positions:
            message = f"a context of {context} exceeds the model's {spec.max_positions}"
            raise UsageProblem("E-CONTEXT", message, "ask for fewer tokens")
    return list(asked) or [n for n in CONTEXTS if n <= spec.max_positions] or [spec.max_positions]


def _layouts(exported: Exported, asked: Sequence[str]) -> list[tuple[str, int]]:
    """Layouts and groups, each once: those asked for, or all that fit, the bundle's own first."""
    spec, own = exported.spec, exported.own
    if asked:
        return list(dict.fromkeys(parse_cache(text, "cpu", spec) for text in asked))
    return list(dict.fromkeys([*([own] if own else []), *fitting_layouts(spec).items()]))


def _run(exported: Exported, layout: str, group: int, context: int) -> RunMemory:
    spec, own = exported.spec, exported.own
    weights = exported.weight_bytes + latent_bytes(spec, layout) - (latent_bytes(spec, own[0]) if own else 0)
    return run_memory(spec, layout, group, context, weights, is_own=own == (layout, group))
