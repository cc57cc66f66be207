"""From a bundle's folder to what an engine consists of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm_edge.bundle import Bundle, open_bundle
from dlm_edge.errors import EnvironmentProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.kernels import OPERATOR_VERSION
from dlm_edge.runtime.budget import cache_bytes, check_budget, parse_bytes
from dlm_edge.runtime.layouts import CacheShape, bytes_per_token
from dlm_edge.runtime.ort_step_model import OrtStepModel
from dlm_edge.runtime.priority import check_background, in_low_thread
from dlm_edge.runtime.session import OpenSession, open_session
from dlm_edge.runtime.settings import check_range
from dlm_edge.runtime.step_model import StepModel
from dlm_edge.runtime.template import ChatTemplate
from dlm_edge.runtime.text import TextCodec

MAX_PARALLEL = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What an engine consists of. `open_parts` makes them from a bundle."""

    spec: ModelSpec
    model: StepModel
    more_models: Sequence[StepModel] = ()  # of further jobs in flight, over the same weights
    codec: TextCodec
    template: ChatTemplate | None
    sampler_defaults: dict[str, Any]
    device: str
    native_operators: bool
    weight_bytes: int = 0
    cache_layout: str = "kv-fp32"
    cache_group: int = 128
    cache_bytes_per_position: int = 0
    bundle_hash: str = ""
    memory_budget: int | None = None
    background: bool = False


def open_parts(
    path: Path,
    device: str,
    *,
    threads: int | None,
    memory_budget: int | str | None,
    parallel: int,
    background: bool,
) -> Parts:
    """Cheap checks first; see `Engine.open`."""
    check_range("parallel", parallel, 1, MAX_PARALLEL)
    if background:
        check_background()
    budget = parse_bytes(memory_budget)
    bundle = open_bundle(path)
    manifest, spec = bundle.manifest, bundle.manifest.model
    if manifest.operator_version > OPERATOR_VERSION:
        found = f"operators of version {manifest.operator_version}, this installation has {OPERATOR_VERSION}"
        raise EnvironmentProblem("E-OP", f"{path} needs {found}", "install the version of dlm-edge that exported it")
    layout, group = manifest.cache_layout, manifest.cache_group
    weights = sum(entry.size for entry in manifest.files if entry.name.startswith("model.onnx"))
    check_budget(budget, weights, cache_bytes(spec, layout, group, 1))
    codec = TextCodec.read(bundle.tokenizer_path, spec)

    def open_here() -> OpenSession:
        return open_session(bundle.graph_path, device=device, threads=threads, target=manifest.target)

    opened = in_low_thread(open_here) if background else open_here()
    models = [OrtStepModel(opened, spec, layout, group) for _ in range(parallel)]
    return Parts(
        spec=spec,
        model=models[0],
        more_models=models[1:],
        codec=codec,
        template=read_template(bundle, codec),
        sampler_defaults=manifest.sampler_defaults,
        device=opened.device,
        native_operators=opened.native_operators,
        weight_bytes=weights,
        cache_layout=layout,
        cache_group=group,
        cache_bytes_per_position=math.ceil(bytes_per_token(layout, CacheShape.of(spec), group=group)),
        bundle_hash=bundle.graph_hash,
        memory_budget=budget,
        background=background,
    )


def read_template(bundle: Bundle, codec: TextCodec) -> ChatTemplate | None:
    path = bundle.chat_template_path
    if path is None:
        return None
    spec = bundle.manifest.model
    named = {"bos_token": spec.conventions.bos_id, "eos_token": spec.conventions.eos_id}
    named |= {"pad_token": spec.conventions.pad_id, "mask_token": spec.conventions.mask_id}
    tokens = {name: text for name, i in named.items() if i is not None and (text := codec.special_text(i))}
    return ChatTemplate.read(path, max_positions=spec.max_positions, tokens=tokens)
