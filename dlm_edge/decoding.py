"""A sampler with its settings, as `eval`, `bench` and `tune` take and name it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dlm_edge.errors import UsageProblem
from dlm_edge.nearest import nearest
from dlm_edge.runtime.sampler_options import sampler_options
from dlm_edge.runtime.samplers import SAMPLERS


def decoding_settings(sampler: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """As the engine takes them. Raises E-PARAM for what the sampler does not have."""
    if sampler not in SAMPLERS:
        raise UsageProblem("E-PARAM", f"sampler {sampler!r} is not known", nearest(sampler, SAMPLERS))
    sampler_options(SAMPLERS[sampler], options)
    return {"sampler": sampler, "sampler_options": dict(options)}


def shown(decoding: Mapping[str, Any]) -> str:
    """A sampler and its settings, those by default among them: `threshold 0.9`, `eb gamma=0.1`."""
    sampler = SAMPLERS[decoding["sampler"]]
    values = msgspec.structs.asdict(sampler_options(sampler, decoding["sampler_options"]))
    values = {name: value for name, value in values.items() if value is not None}
    if set(values) == {sampler.name}:
        return f"{sampler.name} {values[sampler.name]}"
    return " ".join([sampler.name, *(f"{name}={value}" for name, value in values.items())])
