r"""Regular expressions as people write them for Python's `re` and for `pattern` in a JSON schema.

The whole text must match. What a finite automaton cannot do, or what looks around (back-references, look-ahead,
`\b`, anchors in the middle, flags, possessive repeats), is refused with the place where it stands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.constraints.automaton import MAX_DEPTH
from dlm_edge.runtime.constraints.characters import (
    ANY,
    ASCII_CLASSES,
    LAST,
    NOT_NEWLINE,
    complement,
    of_text,
    unicode_class,
    union,
)
from dlm_edge.runtime.constraints.nfa import RegularAutomaton
from dlm_edge.runtime.constraints.syntax_tree import Chars, Choice, Ranges, Repeat, Sequence, Tree, sequence

MAX_PATTERN = 20_000  # characters
MAX_REPEAT = 100_000
CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}
HEX_LENGTHS = {"x": 2, "u": 4, "U": 8}
COUNTED = re.compile(r"\{(?=[0-9,])([0-9]*)(,?)([0-9]*)\}")
NAMED = re.compile(r"\?(?:P?<[^\W\d]\w*>|:)")  # what may follow the parenthesis of a group
ANYTHING = Repeat(Chars(ANY), 0, None)


def compile_regex(pattern: str) -> RegularAutomaton:
    """The automaton of the texts that match `pattern` whole. Raises E-PARAM."""
    return RegularAutomaton(Choice(tuple(branch.tree for branch in parse(pattern))), "the regular expression")


def search_tree(pattern: str) -> Tree:
    r"""The strings in which `pattern` is found, as JSON schemas mean it; \d, \w and \s are ASCII as in ECMA 262."""
    found = []
    for branch in parse(pattern, ascii_only=True):
        before = () if branch.from_start else (ANYTHING,)
        found.append(sequence(*before, branch.tree, *(() if branch.to_end else (ANYTHING,))))
    return Choice(tuple(found))


@dataclass(frozen=True, slots=True)
class Branch:
    """One of the alternatives that a pattern separates by | outside of all groups."""

    tree: Tree
    from_start: bool  # it begins with ^
    to_end: bool  # it ends with $


def parse(pattern: str, *, ascii_only: bool = False) -> list[Branch]:
    """E-PARAM naming the position for what is malformed or not supported."""
    if len(pattern) > MAX_PATTERN:
        message = f"the regular expression has {len(pattern)} characters, more than {MAX_PATTERN}"
        raise UsageProblem("E-PARAM", message, "shorten it")
    return _Parser(pattern, ascii_only).branches()


class _Parser:
    def __init__(self, pattern: str, ascii_only: bool) -> None:
        self.pattern, self.at = pattern, 0
        self.classes = ASCII_CLASSES.__getitem__ if ascii_only else unicode_class

    def branches(self) -> list[Branch]:
        found = []
        while True:
            from_start = self._take("^")
            tree = self._sequence(depth=0)
            found.append(Branch(tree, from_start, self._take("$")))
            if self.at == len(self.pattern):
                return found
            if not self._take("|"):
                raise self._problem(f"{self.pattern[self.at]!r} does not belong here")

    def _sequence(self, depth: int) -> Tree:
        """Up to the next | or ) of this depth, or the $ that ends the pattern's branch."""
        items: list[Tree] = []
        while (char := self._peek()) and char not in "|)":
            if char == "$" and depth == 0 and self.pattern[self.at + 1 : self.at + 2] in ("", "|"):
                break
            items.append(self._repeated(self._atom(depth)))
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def _atom(self, depth: int) -> Tree:
        start, char = self.at, self._next()
        if char == "(":
            return self._group(start, depth + 1)
        if char == "[":
            return Chars(self._class(start))
        if char == "\\":
            return Chars(self._escape(start, in_class=False))
        if char == ".":
            return Chars(NOT_NEWLINE)
        if char in "^$":
            raise self._problem(f"the anchor {char} in the middle is not supported", start)
        if char in "*+?" or (char == "{" and COUNTED.match(self.pattern, start)):
            raise self._problem(f"{char} has nothing to repeat", start)
        return Chars(self._character(char, start))

    def _group(self, start: int, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise self._problem(f"groups are nested more than {MAX_DEPTH} deep", start)
        if self._peek() == "?":
            named = NAMED.match(self.pattern, self.at)
            if not named:
                what = self.pattern[start : start + 4]
                raise self._problem(f"{what!r} is not supported: plain, named and (?: groups are", start)
            self.at = named.end()
        items = [self._sequence(depth)]
        while self._take("|"):
            items.append(self._sequence(depth))
        if not self._take(")"):
            raise self._problem("the group is not closed", start)
        return items[0] if len(items) == 1 else Choice(tuple(items))

    def _repeated(self, item: Tree) -> Tree:
        start = self.at
        counted = COUNTED.match(self.pattern, start)
        if counted:
            self.at = counted.end()
            low = int(counted[1] or 0)
            high = (int(counted[3]) if counted[3] else None) if counted[2] else low
            if max(low, high or 0) > MAX_REPEAT:
                raise self._problem(f"more than {MAX_REPEAT} repeats", start)
            if high is not None and high < low:
                raise self._problem("the larger number of repeats comes first", start)
        elif (char := self._peek()) and char in "*+?":
            self.at += 1
            low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        else:
            return item
        self._take("?")  # lazy: the same texts
        after = self._peek()
        if (after and after in "*+?") or COUNTED.match(self.pattern, self.at):
            raise self._problem("a repeat of a repeat", self.at)
        return Repeat(item, low, high)

    def _class(self, start: int) -> Ranges:
        negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        first = True
        while first or self._peek() != "]":
            first = False
            at = self.at
            if self.at >= len(self.pattern):
                raise self._problem("the class is not closed", start)
            low = self._class_item(self._next(), at)
            if self._peek() == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                end = self.at
                high = self._class_item(self._next(), end)
                if len(low) != 1 or len(high) != 1 or low[0][0] != low[0][1] or high[0][0] != high[0][1]:
                    raise self._problem("a range needs one character at each end", at)
                if high[0][0] < low[0][0]:
                    raise self._problem("the range runs backwards", at)
                low = ((low[0][0], high[0][0]),)
            ranges += low
        self.at += 1
        return complement(ranges) if negated else union(ranges)

    def _class_item(self, char: str, at: int) -> Ranges:
        return self._escape(at, in_class=True) if char == "\\" else self._character(char, at)

    def _escape(self, start: int, *, in_class: bool) -> Ranges:
        if self.at >= len(self.pattern):
            raise self._problem("a backslash at the end", start)
        char = self._next()
        if char in "dws":
            return self.classes(char)
        if char in "DWS":
            return complement(self.classes(char.lower()))
        if char in HEX_LENGTHS:
            return self._hexadecimal(HEX_LENGTHS[char], start)
        if in_class and char == "b":
            return of_text("\b")
        if char in CONTROLS and not (char == "0" and self._peek().isdigit()):
            return of_text(CONTROLS[char])
        if char.isascii() and char.isalnum():
            what = "back-references are" if char.isdigit() else f"\\{char} is"
            raise self._problem(f"{what} not supported", start)
        return self._character(char, start)

    def _hexadecimal(self, length: int, start: int) -> Ranges:
        digits = self.pattern[self.at : self.at + length]
        if not re.fullmatch(f"[0-9a-fA-F]{{{length}}}", digits) or int(digits, 16) > LAST:
            raise self._problem(f"an escape of {length} hexadecimal digits is malformed", start)
        self.at += length
        return self._character(chr(int(digits, 16)), start)

    def _character(self, char: str, at: int) -> Ranges:
        if 0xD800 <= ord(char) <= 0xDFFF:
            raise self._problem("a lone surrogate is no character", at)
        return ((ord(char), ord(char)),)

    def _peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _next(self) -> str:
        self.at += 1
        return self.pattern[self.at - 1]

    def _take(self, char: str) -> bool:
        found = self._peek() == char
        self.at += found
        return found

    def _problem(self, what: str, at: int | None = None) -> UsageProblem:
        position = self.at if at is None else at
        return UsageProblem("E-PARAM", f"the regular expression, position {position}: {what}", "write it otherwise")
