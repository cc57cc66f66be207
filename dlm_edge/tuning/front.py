"""Of measured settings, the one to use, and those that no other beats in both quality and speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Measured(Protocol):
    """`agreement` and `speed_ratio` are relative to `static`; `steps_per_token` are forward passes per token."""

    @property
    def agreement(self) -> float: ...
    @property
    def speed_ratio(self) -> float: ...
    @property
    def steps_per_token(self) -> float: ...


Row = TypeVar("Row", bound=Measured)

# Speeds this close are one speed: medians of three rounds of settings that took the same steps differed by up to 5 %
# on the reference model and two shared cores, and forward passes do not depend on the machine's mood.
TIED = 0.05


def fastest(rows: Sequence[Row], agreement: float) -> Row:
    """The fastest of the rows that agree at least so far; of those about as fast, the one of fewest forward passes, then
    of highest agreement, then the first. At least one row has to agree so far."""
    held = [row for row in rows if row.agreement >= agreement]
    top = max(row.speed_ratio for row in held)
    tied = [row for row in held if row.speed_ratio >= top * (1 - TIED)]
    return min(tied, key=lambda row: (row.steps_per_token, -row.agreement))


def front(rows: Sequence[Row]) -> list[Row]:
    """Rows of which no other is at least as good in agreement and speed and better in one; by rising speed."""
    return sorted(
        (row for row in rows if not any(beats(other, row) for other in rows)),
        key=lambda row: (row.speed_ratio, -row.agreement),
    )


def beats(one: Measured, other: Measured) -> bool:
    no_worse = one.agreement >= other.agreement and one.speed_ratio >= other.speed_ratio
    return no_worse and (one.agreement > other.agreement or one.speed_ratio > other.speed_ratio)
