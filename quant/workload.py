"""The shapes that decide how much memory and time a job takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dlm_edge.quant.held_out import TOKENS as PROBE_TOKENS
from dlm_edge.quant.methods import Method, find_method
from dlm_edge.quant.plan import Plan, QuantizeOptions


@dataclass(frozen=True, slots=True)
class Workload:
    """The shapes that decide, in values: linears (rows, columns) of one layer; tokens of calibration and held-out states."""

    layer: int
    linears: list[tuple[int, int]]
    outer: int
    n_outer: int
    width: int
    tokens: int
    probe_tokens: int
    method: Method
    bits: float
    tuned: bool
    rotated: bool

    @classmethod
    def of(cls, plan: Plan, options: QuantizeOptions) -> Workload:
        source, spec = plan.checkpoint, plan.spec
        copies = 1 if spec.conventions.attention == "full" else 2  # clean text and its noisy copy
        return cls(
            layer=sum(math.prod(source.shape(r)) for r in source.roles() if r.startswith("layers.0.")),
            linears=[(source.shape(r)[0], source.shape(r)[1]) for r in plan.roles],
            outer=spec.embedding_rows * spec.hidden_size,
            n_outer=len(plan.outer),
            width=spec.hidden_size,
            tokens=plan.state_tokens * copies,
            probe_tokens=PROBE_TOKENS * copies if plan.state_tokens else 0,
            method=find_method(options.recipe.method),
            bits=options.recipe.bits,
            tuned=options.recipe.tuning is not None,
            rotated=options.recipe.rotate,
        )

    @property
    def results(self) -> int:
        """Bytes of the layer's packed weights, about."""
        return math.ceil(self.layer * (self.bits / 8 + 1 / 16))

    @property
    def beside(self) -> bool:
        """Whether the hidden states of the full-precision model are kept."""
        return self.method.needs_full or self.tuned


def widest(work: Workload) -> tuple[int, int]:
    """(rows, columns) of the linear with the most inputs."""
    return max(work.linears, key=lambda shape: (shape[1], shape[0]))
