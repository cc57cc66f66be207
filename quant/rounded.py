"""What a method made of one weight."""

from __future__ import annotations

from dataclasses import dataclass, field

from dlm_edge.quant.treatments import Decision
from dlm_edge.quantized import PackedWeight


@dataclass(frozen=True, slots=True)
class Rounded:
    """`tensor` is None when the method cannot quantize this weight; `notes` are for the report and say why.
    `treatment`: what the rounding itself decided about outliers."""

    tensor: PackedWeight | None
    notes: list[str] = field(default_factory=list)
    damping: float | None = None
    treatment: Decision | None = None
