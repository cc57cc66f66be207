"""From a bundle's folder to what an engine consists of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlm_edge.bundle import Bundle, open_bundle
from dlm_edge.families.spec import ModelSpec
from dlm_edge.runtime.budget import cache_bytes, check_budget, parse_bytes
from dlm_edge.runtime.bundle_models import check_operators, open_models, weight_bytes
from dlm_edge.runtime.constraints.compiling import ConstraintCompiler
from dlm_edge.runtime.guide_bundle import GuideParts, check_same_vocabulary, open_guide
from dlm_edge.runtime.layouts import CacheShape, bytes_per_token
from dlm_edge.runtime.learned_filter import Filter
from dlm_edge.runtime.priority import check_background
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
    guide: GuideParts | None = None
    filter: Filter | None = None
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
    constraints: ConstraintCompiler = field(default_factory=ConstraintCompiler)

    @property
    def all_weight_bytes(self) -> int:
        """Those of the guide among them."""
        return self.weight_bytes + (0 if self.guide is None else self.guide.weight_bytes)


def open_parts(
    path: Path,
    device: str,
    *,
    threads: int | None,
    memory_budget: int | str | None,
    parallel: int,
    background: bool,
    guide: Path | None = None,
) -> Parts:
    """Cheap checks first; see `Engine.open`."""
    check_range("parallel", parallel, 1, MAX_PARALLEL)
    if background:
        check_background()
    budget = parse_bytes(memory_budget)
    bundles = [open_bundle(each) for each in (path, guide) if each is not None]
    for each in bundles:
        check_operators(each)
    weights = [weight_bytes(each) for each in bundles]
    check_budget(budget, sum(weights), sum(least_cache_bytes(each) for each in bundles))
    bundle, manifest, spec = bundles[0], bundles[0].manifest, bundles[0].manifest.model
    layout, group = manifest.cache_layout, manifest.cache_group
    codec = TextCodec.read(bundle.tokenizer_path, spec)
    learned = read_own_filter(bundle)
    for each in bundles[1:]:
        check_same_vocabulary(codec, TextCodec.read(each.tokenizer_path, each.manifest.model))
    options: dict[str, Any] = {"threads": threads, "parallel": parallel, "background": background}
    opened, models = open_models(bundle, device, **options)
    return Parts(
        spec=spec,
        model=models[0],
        more_models=models[1:],
        codec=codec,
        template=read_template(bundle, codec),
        guide=open_guide(bundles[1], device, **options) if guide is not None else None,
        filter=learned,
        sampler_defaults=manifest.sampler_defaults,
        device=opened.device,
        native_operators=opened.native_operators,
        weight_bytes=weights[0],
        cache_layout=layout,
        cache_group=group,
        cache_bytes_per_position=math.ceil(bytes_per_token(layout, CacheShape.of(spec), group=group)),
        bundle_hash=bundle.graph_hash,
        memory_budget=budget,
        background=background,
    )


def least_cache_bytes(bundle: Bundle) -> int:
    """Of a text of one position."""
    manifest = bundle.manifest
    return cache_bytes(manifest.model, manifest.cache_layout, manifest.cache_group, 1)


def read_own_filter(bundle: Bundle) -> Filter | None:
    path = bundle.filter_path
    if path is None:
        return None
    from dlm_edge.runtime.filter_file import read_filter

    return read_filter(path, bundle.manifest.model.conventions.block_length)


def read_template(bundle: Bundle, codec: TextCodec) -> ChatTemplate | None:
    path = bundle.chat_template_path
    if path is None:
        return None
    spec = bundle.manifest.model
    named = {"bos_token": spec.conventions.bos_id, "eos_token": spec.conventions.eos_id}
    named |= {"pad_token": spec.conventions.pad_id, "mask_token": spec.conventions.mask_id}
    tokens = {name: text for name, i in named.items() if i is not None and (text := codec.special_text(i))}
    return ChatTemplate.read(path, max_positions=spec.max_positions, tokens=tokens)
