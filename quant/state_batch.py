"""What calibration states are made from, how they are asked for, and the form in which a layer pass takes them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dlm_edge.errors import UsageProblem
from dlm_edge.models.transformer import Attend

MODES = ("forward", "rollout", "clean")
QUOTAS = {  # shares of the states by share of hidden tokens: (0, 1/4], (1/4, 1/2], (1/2, 3/4], (3/4, 1]
    "uniform": (0.25, 0.25, 0.25, 0.25),
    "u_shaped": (0.3, 0.2, 0.2, 0.3),  # DLLMQuant, arXiv 2508.14090
}
USED_IN = {  # the modes in which a field of StateConfig decides anything
    "draws": ("forward",),
    "quota": ("forward", "rollout"),
    "confidence": ("forward", "rollout"),
}
BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of one text. The first `n_prompt` are never hidden; those from `n_content` on fill up the last
    block: they may be hidden, as they are while decoding, but carry no weight."""

    ids: tuple[int, ...]
    n_prompt: int
    n_content: int


@dataclass(frozen=True, slots=True)
class Batch:
    """ids, originals (what the masks hide) and weights [rows, seq]; positions [seq] repeat where noisy copies follow
    their clean text. `attend` belongs to these rows and this order: a batch is run as a whole."""

    ids: Tensor
    originals: Tensor
    positions: Tensor
    weights: Tensor
    attend: Attend


@dataclass(frozen=True, slots=True, kw_only=True)
class StateConfig:
    """Which states, and the weights of their tokens in the statistics before these are normalised to mean 1.

    draws       masks drawn per text (forward); rollout takes what its schedule visits
    quota       how states are spread over the share of hidden tokens, a name of QUOTAS
    confidence  hidden tokens weigh 0.5 + the model's probability of its own prediction; otherwise 1
    visible     weight of tokens beside hidden ones
    clean       weight of finished blocks, whose keys and values the later ones read
    """

    mode: str = "forward"
    draws: int = 1
    quota: str = "uniform"
    confidence: bool = False
    visible: float = 0.3
    clean: float = 0.3

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            message = f"calibration mode {self.mode!r} is not known"
            raise UsageProblem("E-USAGE", message, f"known: {', '.join(MODES)}")
        if self.quota not in QUOTAS:
            message = f"quota {self.quota!r} is not known"
            raise UsageProblem("E-USAGE", message, f"known: {', '.join(QUOTAS)}")
        if not 1 <= self.draws <= 64:
            raise UsageProblem("E-USAGE", f"draws is {self.draws}", "choose 1 to 64")
        for name in ("visible", "clean"):
            if not 0 <= getattr(self, name) <= 1e3:
                raise UsageProblem("E-USAGE", f"the weight {name} is {getattr(self, name)}", "choose from 0 up")

    @property
    def needs_model(self) -> bool:
        """Whether the states depend on what the full-precision model predicts."""
        return self.mode == "rollout" or (self.confidence and self.mode == "forward")
