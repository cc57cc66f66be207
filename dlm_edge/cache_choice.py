"""Which cache layout a bundle gets: LAYOUT[,group=N] of the command line, as a model and a target can have it."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.runtime.layouts import CacheShape, default_group, fitting_layout, open_layout

DEFAULT_CACHE = {"cpu": "kv-fp32", "cuda": "kv-fp16"}
BODY: dict[str, np.dtype[Any]] = {"cpu": np.dtype(np.float32), "cuda": np.dtype(np.float16)}


def parse_cache(text: str, target: str, spec: ModelSpec) -> tuple[str, int]:
    """Layout and group of LAYOUT[,group=N], as this model has them. Raises E-PARAM."""
    name, *options = text.split(",")
    shape = CacheShape.of(spec)
    name = fitting_layout({"kv": DEFAULT_CACHE[target]}.get(name, name), shape)
    if name == "none" and spec.conventions.attention != "full":
        message = f"--cache {text}: {spec.family} stores finished blocks, and needs a cache for them"
        raise UsageProblem("E-PARAM", message, "none is for full attention; use kv")
    if name == "none" and options:
        raise UsageProblem("E-PARAM", f"--cache {text}: nothing is stored, in groups or otherwise", "--cache none")
    group = default_group(name)
    for option in options:
        key, _, value = option.partition("=")
        if key != "group" or not value.isdigit():
            raise UsageProblem("E-PARAM", f"--cache {text}: {option!r} is no option", "as in kv-int4,group=64")
        group = int(value)
    open_layout(name, shape, 0, group=group)
    if name == "kv-fp32" and BODY[target] != np.float32:
        message = f"a cache of {name} was asked for, and the graph of the target {target} computes in {BODY[target]}"
        raise UsageProblem("E-PARAM", message, "--cache kv-fp16")
    return name, group
