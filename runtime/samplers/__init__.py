"""The samplers by name. One more is one file beside these, its test, and one line in the table."""

from typing import Any

from dlm_edge.runtime.samplers import static, threshold
from dlm_edge.runtime.samplers.contract import Commits, Needs, Sampler, SamplerOptions, SelectState

_ALL: tuple[Sampler[Any], ...] = (
    static.SAMPLER,
    threshold.SAMPLER,
)
SAMPLERS: dict[str, Sampler[Any]] = {sampler.name: sampler for sampler in _ALL}

__all__ = ["SAMPLERS", "Commits", "Needs", "Sampler", "SamplerOptions", "SelectState"]
