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
    """As the engine takes them: the sampler's defaults among them, so that none of the bundle's takes their place.

    Raises E-PARAM for what the sampler does not have.
    """
    if sampler not in SAMPLERS:
        raise UsageProblem("E-PARAM", f"sampler {sampler!r} is not known", nearest(sampler, SAMPLERS))
    values = msgspec.structs.asdict(sampler_options(SAMPLERS[sampler], options))
    return {"sampler": sampler, "sampler_options": {name: v for name, v in values.items() if v is not None}}


def shown(decoding: Mapping[str, Any]) -> str:
    """A sampler and its settings, those by default among them: `threshold 0.9`, `eb gamma=0.1`."""
    name, values = decoding["sampler"], decoding["sampler_options"]
    if set(values) == {name}:
        return f"{name} {values[name]}"
    return " ".join([name, *(f"{option}={value}" for option, value in values.items())])
