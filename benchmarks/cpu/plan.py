"""What a run is to measure, and with what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .peer import PeerPlace

LONG = 512  # positions from which on a round takes so much longer that a third of them have to do


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`positions` of whole passes, `prompts` of requests and steps; `peer` is None where it is not installed."""

    folder: Path
    threads: tuple[int, ...]
    models: tuple[str, ...]
    positions: tuple[int, ...]
    prompts: tuple[int, ...]
    rounds: int
    peer: PeerPlace | None

    def rounds_of(self, positions: int) -> int:
        return self.rounds if positions < LONG else max(self.rounds // 3, 1)
