"""Strings that end a text: found across token and block borders, and never given out in part."""

from __future__ import annotations

from collections.abc import Sequence

from dlm_edge.errors import UsageProblem

MAX_STOPS, MAX_CHARACTERS = 64, 1024


def check_stops(stops: Sequence[str]) -> tuple[str, ...]:
    """E-PARAM for an empty or very long one, or too many."""
    if len(stops) > MAX_STOPS:
        raise UsageProblem("E-PARAM", f"{len(stops)} stop strings were given", f"give at most {MAX_STOPS}")
    for stop in stops:
        if not 0 < len(stop) <= MAX_CHARACTERS:
            message = f"a stop string has {len(stop)} characters"
            raise UsageProblem("E-PARAM", message, f"give 1 to {MAX_CHARACTERS}")
    return tuple(stops)


class StopText:
    """Text in, text out; what may become a stop string waits. `found` once one is complete: nothing comes after it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.found = tuple(stops), False
        self._longest = max(map(len, stops), default=0)
        self._waiting = ""

    def push(self, text: str) -> str:
        """What is sure not to belong to a stop string, up to the first one."""
        if self.found:
            return ""
        text = self._waiting + text
        ends = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if ends:
            self.found, self._waiting = True, ""
            return text[: min(ends)]
        n = self._held(text)
        self._waiting = text[len(text) - n :]
        return text[: len(text) - n]

    def finish(self) -> str:
        """What waited for the rest of a stop string that did not come."""
        waiting, self._waiting = self._waiting, ""
        return waiting

    def _held(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for n in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self.stops):
                return n
        return 0
