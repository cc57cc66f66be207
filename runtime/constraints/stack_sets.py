"""Sets of return stacks, each set kept once under one number, however many stacks it holds.

A set is a pair: whether the empty stack is in it, and for each item that is on top of a stack the set of what lies
below. That is the minimal deterministic acyclic automaton of the stacks read from the top (Revuz 1992), kept by its
content like Tomita's graph-structured stack (1987): 2^n stacks of n frames with two choices each are n sets, and two
sets are equal exactly when their numbers are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dlm_edge.errors import JobError

NOTHING = 0  # no stack
EMPTY_STACK = 1  # the empty stack alone
MAX_SETS = 400_000  # about 0.5 KB each
MAX_REMEMBERED = 500_000
MAX_WORK = 300_000  # between two calls of `begin`; about 0.3 s


class StackSets:
    """The sets made so far, by number.

    has_empty[s]   whether the empty stack is in set s
    tops[s]        the items on top and for each the set of what lies below it, sorted
    fewest[s]      for each number of frames that a stack of s has, the fewest bytes until it has returned from all
    """

    def __init__(self, costs: Sequence[Sequence[float]], max_frames: int) -> None:
        """costs[n][item]: the fewest bytes to finish `item` with n frames to spare; the last holds for more."""
        self.has_empty, self.tops = list[bool](), list[tuple[tuple[int, int], ...]]()
        self.fewest = list[dict[int, int]]()
        self._costs, self._max_frames, self._work = costs, max_frames, 0
        self._numbers: dict[tuple[bool, tuple[tuple[int, int], ...]], int] = {}
        self._unions: dict[tuple[int, int], int] = {}
        self._within: dict[tuple[int, int], int] = {}
        assert self.make(has_empty=False, tops={}) == NOTHING
        assert self.make(has_empty=True, tops={}) == EMPTY_STACK

    def __len__(self) -> int:
        return len(self.tops)

    def begin(self) -> None:
        """A new piece of work, which may take MAX_WORK steps."""
        self._work = 0

    def spend(self, steps: int) -> None:
        """JobError E-MEM beyond MAX_WORK: grammars of a few lines can be ambiguous in exponentially many ways."""
        self._work += steps
        if self._work > MAX_WORK:
            message = f"more than {MAX_WORK} steps would be needed to follow all readings of the same bytes"
            raise JobError("E-MEM", message, "make the grammar less ambiguous, or smaller")

    def make(self, *, has_empty: bool, tops: Mapping[int, int]) -> int:
        """The number of a set. JobError E-MEM beyond MAX_SETS."""
        self.spend(1 + len(tops))
        content = (has_empty, tuple(sorted(tops.items())))
        number = self._numbers.get(content)
        if number is None:
            number = len(self.tops)
            if number == MAX_SETS:
                raise JobError(
                    "E-MEM", f"the grammar needs more than {MAX_SETS} sets of stacks", "simplify the grammar"
                )
            self._numbers[content] = number
            self.has_empty.append(has_empty)
            self.tops.append(content[1])
            self.fewest.append(self._fewest(*content))
        return number

    def push(self, item: int, below: int) -> int:
        return self.make(has_empty=False, tops={item: below})

    def union(self, a: int, b: int) -> int:
        if a == b or b == NOTHING:
            return a
        if a == NOTHING:
            return b
        pair = (a, b) if a < b else (b, a)
        if pair not in self._unions:
            tops = dict(self.tops[a])
            for item, below in self.tops[b]:
                tops[item] = self.union(tops.get(item, NOTHING), below)
            found = self.make(has_empty=self.has_empty[a] or self.has_empty[b], tops=tops)
            _remember(self._unions, pair, found)
            return found
        return self._unions[pair]

    def within(self, number: int, frames: int) -> int:
        """The stacks of the set that have at most `frames` frames."""
        if frames < 0 or not self.fewest[number]:
            return NOTHING
        if max(self.fewest[number]) <= frames:
            return number
        pair = (number, frames)
        if pair not in self._within:
            kept = {item: self.within(below, frames - 1) for item, below in self.tops[number]}
            tops = {item: below for item, below in kept.items() if below != NOTHING}
            found = self.make(has_empty=self.has_empty[number], tops=tops)
            _remember(self._within, pair, found)
            return found
        return self._within[pair]

    def _fewest(self, has_empty: bool, tops: Sequence[tuple[int, int]]) -> dict[int, int]:
        fewest = {0: 0} if has_empty else {}
        for item, below in tops:
            self.spend(len(self.fewest[below]))
            for frames, rest in self.fewest[below].items():
                spare = min(self._max_frames - frames, len(self._costs) - 1)
                total = int(self._costs[spare][item]) + rest  # OverflowError for infinity: a dead stack was kept
                fewest[frames + 1] = min(total, fewest.get(frames + 1, total))
        return fewest


def _remember(memory: dict[tuple[int, int], int], key: tuple[int, int], value: int) -> None:
    """Results can be found again, so forgetting them costs time only."""
    if len(memory) >= MAX_REMEMBERED:
        memory.clear()
    memory[key] = value
