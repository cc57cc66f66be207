"""The fewest bytes that a tree takes, from its beginning or from a place inside it; inf where no text fits.

A place is a number or a pair, by the kind of tree: see `begin` and nfa.py.
"""

from __future__ import annotations

import math
from typing import Any, assert_never

from dlm_edge.runtime.constraints.characters import SINK, utf8_nodes
from dlm_edge.runtime.constraints.syntax_tree import (
    Chars,
    Choice,
    Literal,
    Machine,
    Ranges,
    Repeat,
    Separated,
    Sequence,
    Tree,
)


class LeastBytes:
    """Remembers what it found by the identity of trees, which must outlive it."""

    def __init__(self) -> None:
        self._whole: dict[int, float] = {}
        self._inside: dict[int, dict[Any, float]] = {}
        self._of_characters: dict[Ranges, list[float]] = {}
        self._bytes: dict[int, bytes] = {}

    def begin(self, tree: Tree) -> Any:
        """The place before a tree's first character."""
        if isinstance(tree, Repeat):
            return tree.low, tree.high
        return (0, False) if isinstance(tree, Separated) else 0

    def whole(self, tree: Tree) -> float:
        if id(tree) not in self._whole:
            self._whole[id(tree)] = self.from_place(tree, self.begin(tree))
        return self._whole[id(tree)]

    def bytes_of(self, literal: Literal) -> bytes:
        if id(literal) not in self._bytes:
            self._bytes[id(literal)] = literal.text.encode()
        return self._bytes[id(literal)]

    def from_place(self, tree: Tree, at: Any) -> float:
        match tree:
            case Chars(ranges):
                node: int = at
                return self._characters(ranges)[node]
            case Literal():
                left: int = len(self.bytes_of(tree)) - at
                return left
            case Choice(items):
                return min(map(self.whole, items), default=math.inf)
            case Repeat(item, _, _):
                low: int = at[0]
                return low * self.whole(item) if low else 0.0
            case Sequence() | Separated() | Machine():
                if id(tree) not in self._inside:
                    self._inside[id(tree)] = self._places(tree)
                return self._inside[id(tree)][at]
            case _:
                assert_never(tree)

    def _characters(self, ranges: Ranges) -> list[float]:
        if ranges not in self._of_characters:
            nodes = utf8_nodes(ranges)
            found = [math.inf] * len(nodes)
            for _ in range(4):  # no character has more bytes
                for i, node in enumerate(nodes):
                    found[i] = min(
                        (1 + (0 if child == SINK else found[child]) for _, _, child in node), default=math.inf
                    )
            self._of_characters[ranges] = found
        return self._of_characters[ranges]

    def _places(self, tree: Sequence | Separated | Machine) -> dict[Any, float]:
        if isinstance(tree, Separated):
            return self._separated(tree)
        if isinstance(tree, Machine):
            return self._machine(tree)
        found: dict[Any, float] = {len(tree.items): 0}
        for i in reversed(range(len(tree.items))):
            found[i] = self.whole(tree.items[i]) + found[i + 1]
        return found

    def _separated(self, tree: Separated) -> dict[Any, float]:
        between = self.whole(tree.separator)
        found: dict[Any, float] = {(len(tree.parts), is_later): 0 for is_later in (False, True)}
        for i in reversed(range(len(tree.parts))):
            part, is_required = tree.parts[i]
            there = self.whole(part) + found[i + 1, True]
            for is_later in (False, True):
                left_out = math.inf if is_required else 0 if tree.in_a_row else found[i + 1, is_later]
                found[i, is_later] = min(there + (between if is_later else 0), left_out)
        return found

    def _machine(self, tree: Machine) -> dict[Any, float]:
        found: dict[Any, float] = {i: 0 if i in tree.accepting else math.inf for i in range(len(tree.edges))}
        changed = True
        while changed:
            changed = False
            for i, outgoing in enumerate(tree.edges):
                least = min((self.whole(label) + found[target] for label, target in outgoing), default=math.inf)
                if least < found[i]:
                    found[i], changed = least, True
        return found
