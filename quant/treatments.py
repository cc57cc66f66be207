"""What is done about the outliers of a linear's input, in the words of every record: a name, and why.

    smooth     part of the activations' range goes into the weights, for int8 activations (smoothquant.py)
    scale      the same for weights of few bits (awq.py)
    split      outlier columns stay in floating point (int8_outlier.py)
    rotate     the residual stream and the heads, or the heads alone, are turned (rotation.py)
    more bits  this weight has more than the mean (mixed.py)
    float      no kernel may round the activations, which are blocks of int8 otherwise (block_rounding.py)
    none       nothing, because of what was measured

Every decision is made where its numbers are measured. `inspect --outliers` runs the same code as the recipe w8a8.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Treatment = Literal["smooth", "scale", "split", "rotate", "more bits", "float", "none"]


@dataclass(frozen=True, slots=True)
class Decision:
    treatment: Treatment
    why: str

    def __str__(self) -> str:
        return f"{self.treatment} ({self.why})"


def settled(decisions: Iterable[Decision]) -> list[str]:
    """What was done, in the order given; one `none` with every reason where nothing was."""
    made = list(decisions)
    done = [str(d) for d in made if d.treatment != "none"]
    reasons = [d.why for d in made] or ["no calibration states, so nothing was measured"]
    return done or [str(Decision("none", "; ".join(dict.fromkeys(reasons))))]


def is_none(treatment: str) -> bool:
    """Whether an entry of a record says that nothing was done."""
    return treatment.startswith("none (")
