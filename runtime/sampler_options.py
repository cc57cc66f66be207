"""The settings of the chosen sampler: which sampler they belong to, and their ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from dlm_edge.errors import UsageProblem
from dlm_edge.nearest import nearest
from dlm_edge.runtime.accepted import abridged, accepted
from dlm_edge.runtime.samplers import SAMPLERS, Sampler, SamplerOptions

IMPLIED = {"threshold": "threshold", "steps": "static"}  # by a setting, where the usual sampler does not have it

MOST_NAMED = 4  # samplers in a hint


def chosen_sampler(given: Mapping[str, Any], usual: str) -> str:
    """Of a caller who named none: the usual one, or the one that the only given setting implies."""
    if set(given) <= set(SAMPLERS[usual].option_names):
        return usual
    implied = {IMPLIED.get(name, usual) for name in given}
    return implied.pop() if len(implied) == 1 else usual


def sampler_options(sampler: Sampler[Any], given: Mapping[str, Any]) -> SamplerOptions:
    """Raises E-PARAM, beginning with the setting's name, for one that the sampler does not have or a value out of range."""
    for name in given:
        if name not in sampler.option_names:
            raise not_its_own(sampler, name)
    try:
        options: SamplerOptions = msgspec.convert(dict(given), sampler.options)
    except msgspec.ValidationError as error:
        found = re.findall(r"`\$\.(\w+)", str(error))
        if not found:  # of several settings together
            raise UsageProblem("E-PARAM", f"the sampler {sampler.name}: {error}", "see docs/samplers.md") from error
        name = found[-1]
        message = f"{name} is {abridged(given[name])}"
        hint = f"the sampler {sampler.name} takes {accepted(sampler.options, name)}"
        raise UsageProblem("E-PARAM", message, hint) from error
    return options


def not_its_own(sampler: Sampler[Any], name: str) -> UsageProblem:
    has = f"has {', '.join(sampler.option_names)}" if sampler.option_names else "has no settings"
    owners = [each.name for each in SAMPLERS.values() if name in each.option_names]
    if not owners:
        near = nearest(name, sampler.option_names)
        hint = near if near.startswith("did") else "see docs/samplers.md"
        return UsageProblem("E-PARAM", f"{name} is no setting of the sampler {sampler.name}, which {has}", hint)
    named = ", ".join(owners[:MOST_NAMED]) + (", ..." if len(owners) > MOST_NAMED else "")
    hint = f"drop it, or choose a sampler that has it: {named}"
    return UsageProblem("E-PARAM", f"{name} does not belong to the sampler {sampler.name}, which {has}", hint)
