"""The samplers by name. One more is one file beside these, its test, and one line in the table."""

from dlm_edge.runtime.samplers import static, threshold
from dlm_edge.runtime.samplers.contract import Commits, Needs, Sampler, SelectState

SAMPLERS: dict[str, Sampler] = {
    "static": static.SAMPLER,
    "threshold": threshold.SAMPLER,
}

__all__ = ["SAMPLERS", "Commits", "Needs", "Sampler", "SelectState"]
