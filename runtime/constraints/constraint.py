"""A constraint with the vocabulary of a model: what it takes to fit, and whether a text meets it."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlm_edge.errors import InternalError, JobError, UsageProblem
from dlm_edge.runtime.constraints.automaton import DEAD, ByteAutomaton, matches
from dlm_edge.runtime.constraints.block_paths import MAX_LAYER_BYTES, BlockPaths
from dlm_edge.runtime.constraints.layer import END
from dlm_edge.runtime.constraints.spelling import Spelling
from dlm_edge.runtime.constraints.token_edges import MAX_BYTES, TokenEdges
from dlm_edge.runtime.constraints.vocabulary import Vocabulary

WORKING_BYTES = MAX_BYTES + MAX_LAYER_BYTES  # that a constraint may come to hold for its tokens


class Constraint:
    """Shared by requests and threads: whoever asks for tokens holds `lock`."""

    def __init__(self, automaton: ByteAutomaton, vocabulary: Vocabulary, stop_ids: Sequence[int]) -> None:
        self.automaton, self.stop_ids = automaton, tuple(stop_ids)
        self.lock = threading.RLock()
        written = AfterSpace(automaton) if vocabulary.drops_leading_space else automaton
        self.start = written.start
        self.edges = TokenEdges(written, vocabulary)
        self.spelling = Spelling(written, vocabulary)
        self.paths = BlockPaths(self.edges, stop_ids)

    def check_fits(self, gen_len: int) -> None:
        """E-PARAM where not even the shortest text has room, or none is known that the vocabulary can spell."""
        if not self.stop_ids:
            raise UsageProblem("E-PARAM", "a constrained text needs an end, and this model has no stop token", "")
        with self.lock:
            try:
                needed = self.spelling.n_tokens(self.start)
            except JobError as error:
                raise UsageProblem("E-PARAM", error.message, error.hint) from error
        if needed == math.inf:
            message = "the model's vocabulary lacks bytes that the constrained text needs"
            raise UsageProblem("E-PARAM", message, "use a model whose tokenizer has all bytes")
        if needed > gen_len:
            message = f"the shortest text that the constraint allows takes {needed:.0f} tokens, and there are {gen_len}"
            raise UsageProblem("E-PARAM", message, f"set max_new_tokens to at least {needed:.0f}")

    def check_text(self, text: str) -> None:
        """The last word on a finished text."""
        with self.lock:
            is_valid = matches(self.automaton, text.encode(errors="surrogatepass"))
        if not is_valid:
            raise InternalError("E-INTERNAL", "the finished text does not meet its constraint", "report this request")

    def state_after(self, state: int, token: int) -> int:
        return int(self.paths.after(np.array([state], np.int32), token)[0])

    def can_end_within(self, states: NDArray[np.int32], n_tokens: int) -> NDArray[np.bool_]:
        """Whether a way to the end is known from each state that takes at most `n_tokens`."""
        return np.array([s == END or self.spelling.n_tokens(s) <= n_tokens for s in states.tolist()], bool)

    def shortest_end(self, state: int, n_tokens: int) -> list[int]:
        """`n_tokens` ids from `state` on: the known way to the end, then stop ids."""
        ids: list[int] = []
        while len(ids) < n_tokens:
            if state == END or self.edges.automaton.accepts(state):
                return ids + [self.stop_ids[0]] * (n_tokens - len(ids))
            token, state = self.spelling.next_token(state)
            ids.append(token)
        return ids


class AfterSpace:
    """The texts of an automaton as a decoder needs them that drops one leading space: it may be there or not."""

    start = 0

    def __init__(self, automaton: ByteAutomaton) -> None:
        self.automaton = automaton
        self._rows: dict[int, NDArray[np.int32]] = {}

    def next(self, state: int) -> NDArray[np.int32]:
        if state not in self._rows:
            row = self.automaton.next(self._inner(state))
            row = np.where(row == DEAD, DEAD, row + 1).astype(np.int32)
            if state == self.start:
                row[ord(" ")] = self.automaton.start + 1
            self._rows[state] = row
        return self._rows[state]

    def accepts(self, state: int) -> bool:
        return self.automaton.accepts(self._inner(state))

    def distance(self, state: int) -> int:
        return self.automaton.distance(self._inner(state))

    def _inner(self, state: int) -> int:
        return state - 1 if state else self.automaton.start
