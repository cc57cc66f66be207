"""What a constraint says, as a tree of characters: regular expressions and JSON schemas are both turned into one."""

from __future__ import annotations

from dataclasses import dataclass

Ranges = tuple[tuple[int, int], ...]  # of code points, both ends included; ascending, apart, without surrogates


@dataclass(frozen=True, slots=True)
class Chars:
    """Any one character of a set."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Literal:
    text: str


@dataclass(frozen=True, slots=True)
class Sequence:
    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Any one of the items; none at all if there are none."""

    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    item: Tree
    low: int
    high: int | None  # None: without end


@dataclass(frozen=True, slots=True)
class Separated:
    """Parts in their order, `separator` between those that are there, then `rest` any number of times."""

    parts: tuple[tuple[Tree, bool], ...]  # with whether the part must be there
    rest: Tree | None
    separator: Tree
    in_a_row: bool  # a part that is left out ends the list, as in an array; in an object the next may follow


@dataclass(frozen=True, slots=True)
class Machine:
    """A finite automaton whose edges are trees; state 0 is the start."""

    edges: tuple[tuple[tuple[Tree, int], ...], ...]
    accepting: frozenset[int]


Tree = Chars | Literal | Sequence | Choice | Repeat | Separated | Machine
EMPTY = Sequence(())
NOTHING = Choice(())  # no text at all


def sequence(*items: Tree | str) -> Tree:
    return Sequence(tuple(Literal(i) if isinstance(i, str) else i for i in items))


def optional(item: Tree) -> Tree:
    return Repeat(item, 0, 1)
