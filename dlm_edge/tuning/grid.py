"""The settings that a sweep tries: for each sampler its main setting from careful to bold, the others as by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dlm_edge.decoding import decoding_settings
from dlm_edge.errors import UsageProblem
from dlm_edge.nearest import nearest
from dlm_edge.runtime.samplers import SAMPLERS

REFERENCE = "static"  # one token per step, which all others are compared with


def each(name: str, *values: Any) -> tuple[dict[str, Any], ...]:
    return tuple({name: value} for value in values)


# A sampler that is not named here is tried with its defaults.
GRID: dict[str, tuple[dict[str, Any], ...]] = {
    "threshold": each("threshold", 0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5),
    "factor": each("factor", 0.7, 1.0, 1.3, 1.6, 1.9),
    "product": each("threshold", 0.95, 0.9, 0.8, 0.7, 0.5),
    "eb": (*each("gamma", 0.02, 0.05, 0.1, 0.3, 0.6), {"gamma": 0.5, "rule": "each"}),
    "sdar-dynamic": each("threshold", 0.95, 0.85, 0.7),
    "fast-dllm-v2": each("threshold", 0.95, 0.9, 0.7),
    "freedave": each("drafts", 2, 4),
    "edit": each("threshold", 0.9, 0.7, 0.5),
    "wino": each("threshold", 0.8, 0.6),
    "localleap": each("relaxed", 0.85, 0.75, 0.6),
    "bacd": ({"lower": 0.7, "upper": 0.95}, {"lower": 0.6, "upper": 0.9}, {"lower": 0.5, "upper": 0.8}),
    "hierarchical": each("low", 0.6, 0.4),
    "credit": each("threshold", 0.9, 0.8, 0.7),
    "adablock": each("threshold", 0.9, 0.8, 0.7),
    "learn2pd": each("tau", 0.99, 0.96, 0.9),
}
A_PLAN = "a sampler whose speed is a number of steps for the whole text suits one length of text only"
LEFT_OUT = dict.fromkeys(("origin", "maskgit_plus", "topk_margin", "entropy"), A_PLAN)  # unless they are asked for


@dataclass(frozen=True, slots=True)
class Candidate:
    sampler: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """`static`, `threshold 0.9`, `eb gamma=0.1`: what the grid says, without the defaults."""
        if set(self.options) == {self.sampler}:
            return f"{self.sampler} {self.options[self.sampler]}"
        return " ".join([self.sampler, *(f"{name}={value}" for name, value in self.options.items())])

    @property
    def settings(self) -> dict[str, Any]:
        """As the engine takes them, the sampler's defaults among them. Raises E-PARAM."""
        return decoding_settings(self.sampler, self.options)


def is_general(name: str) -> bool:
    """Whether requests for structured output or sparse attention can use the sampler. As a default it must not refuse them."""
    sampler = SAMPLERS[name]
    needs = sampler.needs
    is_free = needs.can_edit or needs.chooses_ids or needs.needs_guide
    return not (is_free or needs.needs_left_out or sampler.drafts)


def candidates(names: Sequence[str] = ()) -> list[Candidate]:
    """Of all samplers but those left out, or of those named, `static` first in any case. Raises E-PARAM for a name that is
    not known."""
    for name in names:
        if name not in SAMPLERS:
            raise UsageProblem("E-PARAM", f"sampler {name!r} is not known", nearest(name, SAMPLERS))
    asked = names or [name for name in SAMPLERS if name not in LEFT_OUT]
    others = [name for name in SAMPLERS if name != REFERENCE and name in asked]
    tried = [Candidate(name, dict(options)) for name in others for options in GRID.get(name, ({},))]
    return [Candidate(REFERENCE), *tried]
