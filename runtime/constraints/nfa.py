"""Trees to automata, both lazily: a nondeterministic one whose states are places in the tree, and sets of these.

A state of the nondeterministic automaton is a place inside a tree and the state that follows the tree, so counts are
not written out: what a constraint costs is what the text touches. Sets of states are the deterministic automaton
(the subset construction, Rabin and Scott, 1959).
"""

from __future__ import annotations

import math
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from dlm_edge.errors import JobError, UsageProblem
from dlm_edge.runtime.constraints.automaton import DEAD, MAX_STATES, N_BYTES
from dlm_edge.runtime.constraints.characters import SINK, utf8_nodes
from dlm_edge.runtime.constraints.least_bytes import LeastBytes
from dlm_edge.runtime.constraints.syntax_tree import (
    Chars,
    Choice,
    Literal,
    Machine,
    Repeat,
    Separated,
    Sequence,
    Tree,
)

MAX_PLACES = 400_000
MAX_WORK = 1_500_000  # edges and closure entries looked at: what ambiguous expressions make many of
ACCEPT = 0
Edge = tuple[int, int, int]  # first byte, last byte, state
Steps = tuple[list[Edge], list[int]]  # edges, and states reached without a byte


class Places:
    """The nondeterministic automaton. State ACCEPT ends the text."""

    def __init__(self) -> None:
        self.least = LeastBytes()
        self.distance: list[float] = [0]  # the fewest bytes to ACCEPT, inf where there is no way
        self._places: list[tuple[Tree, Any, int]] = [(Sequence(()), 0, ACCEPT)]
        self._steps: list[Steps | None] = [([], [])]
        self._number: dict[tuple[int, Any, int], int] = {}

    def state(self, tree: Tree, then: int, at: Any = None) -> int:
        """From which exactly the texts of `tree`, from the place `at` in it on, lead to `then`."""
        if at is None:
            at = self.least.begin(tree)
        key = (id(tree), at, then)  # trees live as long as the automaton: they hang on its root
        if key not in self._number:
            self._number[key] = len(self._places)
            self._places.append((tree, at, then))
            self._steps.append(None)
            self.distance.append(self.least.from_place(tree, at) + self.distance[then])
        return self._number[key]

    @property
    def n_places(self) -> int:
        return len(self._places)

    def steps(self, state: int) -> Steps:
        """From `state` on, without what leads nowhere."""
        found = self._steps[state]
        if found is None:
            edges, empty = self._new_steps(*self._places[state], state)
            found = (
                [e for e in edges if self.distance[e[2]] < math.inf],
                [s for s in empty if self.distance[s] < math.inf],
            )
            self._steps[state] = found
        return found

    def _new_steps(self, tree: Tree, at: Any, then: int, own: int) -> Steps:
        match tree:
            case Chars(ranges):
                node = utf8_nodes(ranges)[at]
                return [(lo, hi, then if c == SINK else self.state(tree, then, c)) for lo, hi, c in node], []
            case Literal():
                data = self.least.bytes_of(tree)
                if not data:
                    return [], [then]
                return [(data[at], data[at], then if at + 1 == len(data) else self.state(tree, then, at + 1))], []
            case Sequence(items):
                if not items:
                    return [], [then]
                after = then if at + 1 == len(items) else self.state(tree, then, at + 1)
                return [], [self.state(items[at], after)]
            case Choice(items):
                return [], [self.state(item, then) for item in items]
            case Repeat(item, _, _):
                low, high = at
                if high == 0:
                    return [], [then]
                fewer = own if at == (0, None) else self.state(tree, then, (max(low - 1, 0), high and high - 1))
                return [], [self.state(item, fewer), *([] if low else [then])]
            case Separated():
                return [], self._separated(tree, at, then)
            case Machine(edges, accepting):
                reached = [self.state(label, self.state(tree, then, target)) for label, target in edges[at]]
                return [], [*reached, *([then] if at in accepting else [])]
            case _:
                assert_never(tree)

    def _separated(self, tree: Separated, at: tuple[int, bool], then: int) -> list[int]:
        index, is_later = at
        is_part = index < len(tree.parts)
        part, is_required = tree.parts[index] if is_part else (tree.rest, False)
        if part is None:
            return [then]
        member = self.state(part, self.state(tree, then, (index + is_part, True)))
        if is_later:
            member = self.state(tree.separator, member)
        if is_required:
            return [member]
        ends = not is_part or tree.in_a_row
        return [member, then if ends else self.state(tree, then, (index + 1, is_later))]


class RegularAutomaton:
    """The ByteAutomaton of a tree. Its states are sets of places."""

    def __init__(self, tree: Tree, name: str) -> None:
        """`name` is what messages call it. E-PARAM if no text fits, or it is too ambiguous from its start on."""
        self.name, self.tree = name, tree
        self._places = Places()
        self._closures: dict[int, tuple[int, ...]] = {}
        self._sets: list[tuple[int, ...]] = []
        self._rows: list[NDArray[np.int32] | None] = []
        self._state_of_set: dict[tuple[int, ...], int] = {}
        self._state_of_targets: dict[frozenset[int], int] = {}
        self._work = 0
        first = self._places.state(tree, ACCEPT)
        if self._places.distance[first] == math.inf:
            raise UsageProblem("E-PARAM", f"no text fits {name}", "it contradicts itself")
        try:
            self.start = self._state(frozenset([first]))
        except JobError as error:
            raise UsageProblem("E-PARAM", error.message, error.hint) from error

    @property
    def is_worn(self) -> bool:
        """Whether half of what it may grow to is used up."""
        return 2 * len(self._sets) > MAX_STATES or 2 * self._work > MAX_WORK

    def next(self, state: int) -> NDArray[np.int32]:
        row = self._rows[state]
        if row is None:
            row = self._rows[state] = self._new_row(self._sets[state])
        return row

    def accepts(self, state: int) -> bool:
        return self._sets[state][0] == ACCEPT

    def distance(self, state: int) -> int:
        return int(min(self._places.distance[s] for s in self._sets[state]))

    def _new_row(self, members: tuple[int, ...]) -> NDArray[np.int32]:
        row = np.full(N_BYTES, DEAD, np.int32)
        edges = [e for member in members for e in self._places.steps(member)[0]]
        self._count(len(edges))
        begins: dict[int, list[int]] = {}
        ends: dict[int, list[int]] = {}
        for low, high, target in edges:
            begins.setdefault(low, []).append(target)
            ends.setdefault(high + 1, []).append(target)
        cuts = sorted(begins.keys() | ends.keys())
        open_edges: dict[int, int] = {}  # target -> how many edges lead there at this byte
        for at, until in zip(cuts, [*cuts[1:], N_BYTES], strict=False):
            for target in ends.get(at, ()):
                open_edges[target] -= 1
                if not open_edges[target]:
                    del open_edges[target]
            for target in begins.get(at, ()):
                open_edges[target] = open_edges.get(target, 0) + 1
            if open_edges:
                row[at:until] = self._state(frozenset(open_edges))
        row.flags.writeable = False
        return row

    def _state(self, targets: frozenset[int]) -> int:
        if targets in self._state_of_targets:
            return self._state_of_targets[targets]
        closures = [self._closure(target) for target in targets]
        self._count(sum(map(len, closures)))
        members = tuple(sorted({s for closure in closures for s in closure}))
        state = self._state_of_set.setdefault(members, len(self._sets))
        if state == len(self._sets):
            if state >= MAX_STATES:
                raise self._too_large(f"more than {MAX_STATES} states")
            self._sets.append(members)
            self._rows.append(None)
        self._state_of_targets[targets] = state
        return state

    def _closure(self, state: int) -> tuple[int, ...]:
        """The states reached without a byte that read one or accept."""
        if state not in self._closures:
            seen, found, todo = {state}, [], [state]
            while todo:
                at = todo.pop()
                edges, empty = self._places.steps(at)
                if at == ACCEPT or edges:
                    found.append(at)
                new = [s for s in empty if s not in seen]
                seen.update(new)
                todo += new
                self._count(1)
                if self._places.n_places > MAX_PLACES:
                    raise self._too_large(f"more than {MAX_PLACES} places")
            self._closures[state] = tuple(found)
        return self._closures[state]

    def _count(self, work: int) -> None:
        self._work += work
        if self._work > MAX_WORK:
            raise self._too_large("too many ways to read a text")

    def _too_large(self, what: str) -> JobError:
        return JobError("E-MEM", f"{self.name} is too ambiguous: its automaton has {what}", "say it more simply")
