"""The settings that samplers have beside threshold and steps: one field for each name, shown while its sampler is chosen."""

from __future__ import annotations

from typing import Any

import msgspec

from dlm_edge.runtime.sampler_options import sampler_options
from dlm_edge.runtime.samplers import SAMPLERS

SHARED = ("threshold", "steps")  # have fields of their own
OWN = tuple(dict.fromkeys(n for s in SAMPLERS.values() for n in s.option_names if n not in SHARED))


def has(sampler: str, name: str) -> bool:
    return sampler in SAMPLERS and name in SAMPLERS[sampler].option_names


def default(sampler: str, name: str) -> Any:
    """None: the sampler has no such setting, or decides by itself."""
    fields = msgspec.structs.fields(SAMPLERS[sampler].options) if has(sampler, name) else ()
    return next((field.default for field in fields if field.name == name), None)


def shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(shown, value))
    return value.replace("\n", "\\n") if isinstance(value, str) else str(value)


def as_list(sampler: str, name: str, value: Any) -> Any:
    """A field holds one text; some settings are lists of them."""
    return (str(value),) if isinstance(default(sampler, name), tuple) else value


def check(sampler: str, given: dict[str, Any]) -> None:
    """Raises E-PARAM for a value that the sampler does not take."""
    if sampler in SAMPLERS:
        sampler_options(SAMPLERS[sampler], given)
