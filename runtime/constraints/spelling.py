"""How many tokens it takes to bring a text to its end: the bound that keeps the room from running out."""

from __future__ import annotations

import math

from dlm_edge.runtime.constraints.automaton import ByteAutomaton
from dlm_edge.runtime.constraints.vocabulary import Vocabulary

MAX_PIECE = 32  # bytes of one token that are looked at


class Spelling:
    """The shortest way to acceptance, by bytes and of these the lowest, spelled with as few tokens as possible.

    Other texts may need fewer tokens, so `n_tokens` is an upper bound of what is needed; but it is one that is
    kept: from a state of n_tokens n > 0, `next_token` leads to a state of n - 1.
    """

    def __init__(self, automaton: ByteAutomaton, vocabulary: Vocabulary) -> None:
        self.automaton, self.vocabulary = automaton, vocabulary
        self._longest = min(vocabulary.longest, MAX_PIECE)
        self._ahead: dict[int, tuple[int, int]] = {}  # state -> byte and state on the shortest way
        self._known: dict[int, tuple[float, int, int]] = {}  # state -> tokens to the end, first token, state after it

    def n_tokens(self, state: int) -> float:
        """inf if the vocabulary lacks a byte that the shortest way needs."""
        return self._plan(state)[0]

    def next_token(self, state: int) -> tuple[int, int]:
        """The token to write, and the state it leads to; for a state that does not accept."""
        n_tokens, token, after = self._plan(state)
        assert 0 < n_tokens < math.inf, "no way to the end from here"
        return token, after

    def _plan(self, state: int) -> tuple[float, int, int]:
        if state not in self._known:
            way, at = [], state
            while at not in self._known and not self.automaton.accepts(at):
                way.append(at)
                at = self._step(at)[1]
            self._known.setdefault(at, (0, -1, at))
            for at in reversed(way):
                self._known[at] = self._shortest(at)
        return self._known[state]

    def _shortest(self, state: int) -> tuple[float, int, int]:
        """Over the tokens that the way begins with; what follows them is known. The longest of the best."""
        best: tuple[float, int, int] = (math.inf, -1, state)
        data, at = b"", state
        while len(data) < self._longest and not self.automaton.accepts(at):
            byte, at = self._step(at)
            data += bytes([byte])
            token = self.vocabulary.id_of.get(data)
            if token is not None and 1 + self._known[at][0] <= best[0]:
                best = (1 + self._known[at][0], token, at)
        return best

    def _step(self, state: int) -> tuple[int, int]:
        if state not in self._ahead:
            row, shorter = self.automaton.next(state), self.automaton.distance(state) - 1
            for byte in (row >= 0).nonzero()[0].tolist():
                if self.automaton.distance(int(row[byte])) == shorter:
                    self._ahead[state] = byte, int(row[byte])
                    break
        return self._ahead[state]
