"""From bytes to tokens: where each token of the vocabulary leads from a state of the automaton.

Most tokens lead to few states: inside a string nearly all of them stay in it. So the edges of a state are a partition
of the tokens into groups with one target each, and states share a partition that is the same (the states that count
the characters of a bounded string differ only in their targets).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlm_edge.runtime.constraints.automaton import DEAD, N_BYTES, ByteAutomaton
from dlm_edge.runtime.constraints.vocabulary import Vocabulary, runs

MAX_BYTES = 128 << 20
MAX_WALKED = 2_000_000  # nodes of the trie in one walk
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """Groups of tokens; within a group by rising id, and the groups by their lowest id."""

    tokens: Ints  # [n_tokens], group after group
    starts: Longs  # [n_groups] first entry of each group

    @property
    def sizes(self) -> Longs:
        return np.diff(self.starts, append=len(self.tokens))

    def group(self, index: int) -> Ints:
        end = self.starts[index + 1] if index + 1 < len(self.starts) else len(self.tokens)
        return self.tokens[self.starts[index] : end]


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """The allowed tokens of one state."""

    partition: Partition
    targets: Ints  # [n_groups]


class TokenEdges:
    """The edges of the states asked for so far, forgotten all at once when they exceed `max_bytes`."""

    def __init__(self, automaton: ByteAutomaton, vocabulary: Vocabulary, max_bytes: int = MAX_BYTES) -> None:
        self.automaton, self.vocabulary, self.max_bytes = automaton, vocabulary, max_bytes
        self._next = np.full((64, N_BYTES), DEAD, np.int32)  # [states, 256], rows filled as they are needed
        self._is_known = np.zeros(64, bool)
        self._edges: dict[int, Edges] = {}
        self._partitions: dict[bytes, Partition] = {}
        self._bytes = 0

    def edges(self, state: int) -> Edges:
        self.find(np.array([state], np.int32))
        return self._edges[state]

    def known(self, state: int) -> Edges:
        """Those of a state that `find` was asked for."""
        return self._edges[state]

    def find(self, states: Ints) -> None:
        """The edges of several states at once, which is faster than one after the other."""
        new = np.array([s for s in states.tolist() if s not in self._edges], np.int32)
        at_once = max(MAX_WALKED // len(self.vocabulary.byte), 1)
        for begin in range(0, len(new), at_once):
            some = new[begin : begin + at_once]
            owners, tokens, targets = self._walk(some)
            cuts = np.searchsorted(owners, np.arange(len(some) + 1))
            for i, state in enumerate(some.tolist()):
                mine = slice(cuts[i], cuts[i + 1])
                self._edges[state] = self._grouped(tokens[mine], targets[mine])
                self._bytes += self._edges[state].targets.nbytes

    def forget_if_large(self) -> bool:
        """Call between two searches, never inside one."""
        is_large = self._bytes > self.max_bytes
        if is_large:
            self._edges, self._partitions, self._bytes = {}, {}, 0
        return is_large

    def next_states(self, state: int, vocab_size: int) -> Ints:
        """[vocab_size] the next state for each token, DEAD where it is not allowed."""
        edges, dense = self.edges(state), np.full(vocab_size, DEAD, np.int32)
        dense[edges.partition.tokens] = np.repeat(edges.targets, edges.partition.sizes)
        return dense

    def step(self, states: Ints, token: int) -> Ints:
        """The state after `token` for each of `states`; DEAD for a token that text may not hold."""
        data = self.vocabulary.bytes_of.get(token)
        if data is None:
            return np.full(len(states), DEAD, np.int32)
        at = states.copy()
        for byte in data:
            is_alive = at != DEAD
            at[is_alive] = self._rows(at[is_alive], np.uint8(byte))
        return at

    def _walk(self, starts: Ints) -> tuple[Longs, Ints, Ints]:
        """Allowed tokens and where they lead, by index of the start and rising id: depth by depth through the living
        part of the trie."""
        trie = self.vocabulary
        nodes, states, owners = np.zeros(len(starts), np.int64), starts, np.arange(len(starts))
        found: list[tuple[Longs, Ints, Ints]] = []
        while len(nodes):
            children, parents = runs(trie.first_child[nodes], trie.n_children[nodes])
            after = self._rows(states[parents], trie.byte[children])
            is_alive = after != DEAD
            nodes, states, owners = children[is_alive], after[is_alive], owners[parents[is_alive]]
            ending, of_node = runs(trie.first_ending[nodes], trie.n_ending[nodes])
            found.append((owners[of_node], trie.ending[ending], states[of_node]))
        owners, tokens, targets = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.lexsort((tokens, owners))
        return owners[order], tokens[order], targets[order]

    def _grouped(self, tokens: Ints, targets: Ints) -> Edges:
        """Groups are numbered by their lowest token, so that equal partitions look equal whatever the targets are."""
        if not len(tokens):
            return Edges(Partition(tokens, np.zeros(0, np.int64)), targets)
        first = np.zeros(int(targets.max()) + 1, np.int64)
        first[targets[::-1]] = np.arange(len(targets))[::-1]  # the last assignment stays: the lowest token
        heads = first[targets]
        is_head = heads == np.arange(len(heads))
        groups = (np.cumsum(is_head) - 1)[heads]
        order = np.argsort(groups.astype(np.uint16) if is_head.sum() < 1 << 16 else groups, kind="stable")
        starts = np.searchsorted(groups[order], np.arange(int(is_head.sum())))
        partition = Partition(tokens[order], starts)
        key = hashlib.blake2b(partition.tokens.tobytes() + starts.tobytes(), digest_size=16).digest()
        if key not in self._partitions:
            self._bytes += partition.tokens.nbytes + starts.nbytes
        return Edges(self._partitions.setdefault(key, partition), targets[is_head])

    def _rows(self, states: Ints, bytes_: NDArray[np.uint8] | np.uint8) -> Ints:
        """The automaton's next states, after its rows for `states` were fetched."""
        if not len(states):
            return states
        highest = int(states.max())
        if highest >= len(self._next):
            more = max(highest + 1 - len(self._next), len(self._next))
            self._next = np.concatenate([self._next, np.full((more, N_BYTES), DEAD, np.int32)])
            self._is_known = np.concatenate([self._is_known, np.zeros(more, bool)])
        if not self._is_known[states].all():
            for state in np.unique(states[~self._is_known[states]]).tolist():
                self._next[state] = self.automaton.next(state)
                self._is_known[state] = True
        after: Ints = self._next[states, bytes_]
        return after
