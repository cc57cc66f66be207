"""The settings of the chosen sampler: which sampler they belong to, and their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dlm_edge.errors import UsageProblem
from dlm_edge.nearest import nearest
from dlm_edge.runtime.samplers import SAMPLERS, Sampler, SamplerOptions

IMPLIED = {"threshold": "threshold", "steps": "static"}  # by a setting, where the usual sampler does not have it


def chosen_sampler(given: Mapping[str, Any], usual: str) -> str:
    """Of a caller who named none: the usual one, or the one that the only given setting implies."""
    if set(given) <= set(SAMPLERS[usual].option_names):
        return usual
    implied = {IMPLIED.get(name, usual) for name in given}
    return implied.pop() if len(implied) == 1 else usual


def sampler_options(sampler: Sampler[Any], given: Mapping[str, Any]) -> SamplerOptions:
    """Raises E-PARAM for a setting that the sampler does not have, and for a value out of range."""
    for name in given:
        if name in sampler.option_names:
            continue
        owners = [each.name for each in SAMPLERS.values() if name in each.option_names]
        own = f"it has {', '.join(sampler.option_names)}" if sampler.option_names else "it has no settings"
        hint = f"drop it, or use {', '.join(owners)}" if owners else nearest(name, sampler.option_names)
        raise UsageProblem("E-PARAM", f"{name} does not belong to the sampler {sampler.name}; {own}", hint)
    try:
        options: SamplerOptions = msgspec.convert(dict(given), sampler.options)
    except msgspec.ValidationError as error:
        message = f"{sampler.name}: {str(error).replace(' - at `$.', ', `')}"
        raise UsageProblem("E-PARAM", message, "see docs/samplers.md") from error
    return options
