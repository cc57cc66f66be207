"""A context-free grammar as a lazy, deterministic automaton over the UTF-8 bytes of its texts.

A state is the set of all stacks with which a pushdown recogniser can stand after the same bytes (stack_sets.py): the
item that reads the next byte on top, below it the items to return to. What is kept can always be completed.

Nesting is bounded so that completion is: at most MAX_FRAMES calls that have to return may be open at once. Texts
that nest deeper are texts of the grammar that this automaton does not know; whatever it accepts is a text of the
grammar. Calls at the end of a rule are free, so `list ::= item | item "," list` has no longest list; but a rule that
calls itself before something that may be empty (`list ::= item list ws`) uses a frame per round.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dlm_edge.errors import JobError, UsageProblem
from dlm_edge.runtime.constraints.automaton import DEAD, MAX_STATES, N_BYTES
from dlm_edge.runtime.constraints.grammar_network import END, INFINITY, GrammarNetwork
from dlm_edge.runtime.constraints.stack_sets import EMPTY_STACK, MAX_SETS, NOTHING, StackSets

MAX_FRAMES = 32
MAX_REMEMBERED = 500_000


class GrammarAutomaton:
    """A `ByteAutomaton`. Not for several threads at once.

    With half of `max_states` states (or of MAX_SETS stack sets) it is `narrowed`: from then on a byte leads only to
    a state that is known or that is nearer to acceptance. Every state can still be completed and every text it
    accepts is a text of the grammar, but others are refused, so this is to be told to the user. Gaps in a text cause
    it, as each may nest in every way; `fresh()` gives an automaton that begins anew.
    """

    def __init__(self, grammar: str | GrammarNetwork, *, max_frames: int = MAX_FRAMES, max_states: int = MAX_STATES):
        """`grammar` in GBNF (grammar_text.py), rule `root` for the whole text.

        E-PARAM, with line and column, for a text that is no such grammar, rules that never end, left recursion through
        other rules, sizes beyond the limits of the files named, and a root that needs more than `max_frames` frames.
        """
        self.network = GrammarNetwork(grammar) if isinstance(grammar, str) else grammar
        self.max_frames, self.max_states = max_frames, max_states
        costs = self.network.fewest_bytes_by_frames(max_frames)
        self._needs = [_first_finite(by_frames) for by_frames in zip(*costs, strict=True)]
        self._stacks = StackSets(costs, max_frames)
        self._spreads: dict[int, tuple[list[int], bool]] = {}
        self._remembered = 0
        self._numbers: dict[int, int] = {}  # stack set to state
        self._sets, self._rows = list[int](), list[NDArray[np.int32] | None]()
        try:
            start = self._closure([(self.network.root, EMPTY_STACK)])
        except JobError as error:
            raise UsageProblem("E-PARAM", f"the grammar is too large: {error.message}", error.hint) from error
        if start == NOTHING:
            message = f"the shortest text of the grammar needs more than {max_frames} rules open at once"
            raise UsageProblem("E-PARAM", message, "join rules, or put a rule's last call at its end")
        self.start = self._state(start)

    def fresh(self) -> GrammarAutomaton:
        """The same grammar with no states yet."""
        return GrammarAutomaton(self.network, max_frames=self.max_frames, max_states=self.max_states)

    @property
    def n_states(self) -> int:
        return len(self._sets)

    @property
    def narrowed(self) -> bool:
        return 2 * len(self._sets) >= self.max_states or 2 * len(self._stacks) >= MAX_SETS

    def accepts(self, state: int) -> bool:
        return self._stacks.has_empty[self._sets[state]]

    def distance(self, state: int) -> int:
        """The fewest bytes to acceptance, exact under the bound on frames."""
        return min(self._stacks.fewest[self._sets[state]].values())

    def next(self, state: int) -> NDArray[np.int32]:
        """[256]. JobError E-MEM beyond `max_states` states or MAX_SETS stack sets, or MAX_WORK steps for this one."""
        assert state != DEAD
        row = self._rows[state]
        if row is None:
            row = np.full(N_BYTES, DEAD, dtype=np.int32)
            self._stacks.begin()
            for mask, starts in self._byte_classes(self._sets[state]):
                target = self._closure(starts)
                if self._may_follow(target, state):
                    row[_members(mask)] = self._state(target)
            row.flags.writeable = False
            self._rows[state] = row
        return row

    def _may_follow(self, target: int, state: int) -> bool:
        if target == NOTHING:
            return False
        known = target in self._numbers or not self.narrowed
        return known or min(self._stacks.fewest[target].values()) < self.distance(state)

    def _state(self, stacks: int) -> int:
        if stacks not in self._numbers:
            if len(self._sets) == self.max_states:
                hint = "fix more of the text before its gaps, or simplify the grammar"
                raise JobError("E-MEM", f"the grammar needs more than {self.max_states} states", hint)
            self._numbers[stacks] = len(self._sets)
            self._sets.append(stacks)
            self._rows.append(None)
        return self._numbers[stacks]

    def _byte_classes(self, stacks: int) -> Iterable[tuple[int, set[tuple[int, int]]]]:
        """Bytes that the same readers of a set read, and where these go on: item and what lies below it."""
        network = self.network
        after: dict[int, list[tuple[int, int]]] = {}
        for item, below in self._stacks.tops[stacks]:
            after.setdefault(network.masks[item], []).append((network.then[item], below))
        classes = list[tuple[int, list[int]]]()  # disjoint sets of bytes, and the readers' masks that hold them
        for mask in after:
            refined, rest = list[tuple[int, list[int]]](), mask
            for bytes_, masks in classes:
                if both := bytes_ & mask:
                    refined.append((both, [*masks, mask]))
                if only := bytes_ & ~mask:
                    refined.append((only, masks))
                rest &= ~bytes_
            classes = [*refined, (rest, [mask])] if rest else refined
            self._stacks.spend(len(classes))
        for bytes_, masks in classes:
            self._stacks.spend(len(masks))
            yield bytes_, {start for mask in masks for start in after[mask]}

    def _closure(self, starts: Iterable[tuple[int, int]]) -> int:
        """The stacks from which the next byte is read, after all calls and returns that read none.

        Ends because no call that reads nothing comes back to itself (no left recursion) and each pair of an item and a
        set below is followed once.
        """
        network, stacks = self.network, self._stacks
        readers, accepts = dict[int, int](), False
        work = list(dict.fromkeys(starts))
        seen = set(work)
        while work:
            item, below = work.pop()
            following = list[tuple[int, int]]()
            chosen, ends = self._spread(item)
            for choice in chosen:
                kept = stacks.within(below, self.max_frames - self._needs[choice])
                if kept == NOTHING:
                    continue
                if network.masks[choice]:
                    readers[choice] = stacks.union(readers.get(choice, NOTHING), kept)
                elif network.then[choice] == END:
                    following.append((network.entries[choice], kept))
                else:
                    following.append((network.entries[choice], stacks.push(network.then[choice], kept)))
            if ends:
                accepts = accepts or stacks.has_empty[below]
                following.extend(stacks.tops[below])
            for pair in following:
                if pair not in seen:
                    seen.add(pair)
                    work.append(pair)
            stacks.spend(len(following) + len(chosen))
        return stacks.make(has_empty=accepts, tops=readers)

    def _spread(self, item: int) -> tuple[list[int], bool]:
        spread = self._spreads.get(item)
        if spread is None:
            spread = self.network.spread(item)
            self._remembered += 1 + len(spread[0])
            if self._remembered > MAX_REMEMBERED:
                self._spreads.clear()
                self._remembered = 1 + len(spread[0])
            self._spreads[item] = spread
        return spread


def _first_finite(by_frames: Iterable[float]) -> int:
    """How many frames an item needs; beyond all bounds if it cannot be finished."""
    return next((n for n, cost in enumerate(by_frames) if cost != INFINITY), 1 << 30)


@lru_cache(maxsize=4096)
def _members(mask: int) -> NDArray[np.bool_]:
    """[256] the bits of `mask`."""
    bits = np.unpackbits(np.frombuffer(mask.to_bytes(N_BYTES // 8, "little"), dtype=np.uint8), bitorder="little")
    return bits.astype(np.bool_)
