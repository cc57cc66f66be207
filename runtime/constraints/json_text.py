"""Trees of JSON text in the one style that is written: that of `json.dumps` in Python, with characters as they are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.constraints.characters import ANY, complement, minus, of_text, union
from dlm_edge.runtime.constraints.regex import parse
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
    sequence,
)

COMMA = Literal(", ")
COLON = Literal(": ")
ANY_DEPTH = 4  # nesting of values about which a schema says nothing
SHORT_ESCAPES = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
CONTROLS = union([(0, 31)])


def json_literal(value: Any) -> Literal:
    """Raises E-PARAM for what JSON text cannot hold."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageProblem(
            "E-PARAM", f"the JSON schema holds a value that is no JSON: {error}", "correct it"
        ) from error
    return Literal(text)


@lru_cache(maxsize=256)
def json_chars(ranges: Ranges) -> Tree:
    """Any one character of a set, as it is written inside a JSON string."""
    plain = minus(minus(ranges, CONTROLS), of_text('"\\'))
    escaped = [code for first, last in ranges for code in range(first, min(last, ord("\\")) + 1)]
    short = of_text("".join(SHORT_ESCAPES[chr(c)] for c in escaped if chr(c) in SHORT_ESCAPES))
    long = [f"{c:02x}" for c in escaped if c < 32 and chr(c) not in SHORT_ESCAPES]
    ways: list[Tree] = [Chars(plain)] if plain else []
    if short:
        ways.append(sequence("\\", Chars(short)))
    for first in sorted({code[0] for code in long}):
        ways.append(sequence(f"\\u00{first}", Chars(of_text("".join(c[1] for c in long if c[0] == first)))))
    return ways[0] if len(ways) == 1 else Choice(tuple(ways))


def in_string(tree: Tree) -> Tree:
    """A tree of characters as it is written inside a JSON string."""
    match tree:
        case Chars(ranges):
            return json_chars(ranges)
        case Literal(text):
            return Literal(json.dumps(text, ensure_ascii=False)[1:-1])
        case Sequence(items):
            return Sequence(tuple(map(in_string, items)))
        case Choice(items):
            return Choice(tuple(map(in_string, items)))
        case Repeat(item, low, high):
            return Repeat(in_string(item), low, high)
        case Machine(edges, accepting):
            return Machine(tuple(tuple((in_string(t), to) for t, to in outgoing) for outgoing in edges), accepting)
        case _:
            raise AssertionError(tree)


def json_string(content: Tree) -> Tree:
    """A string whose value is a text of `content`."""
    return sequence('"', in_string(content), '"')


def any_string() -> Tree:
    return json_string(Repeat(Chars(ANY), 0, None))


def member(key: Tree, value: Tree) -> Tree:
    return sequence(key, COLON, value)


def json_object(members: Iterable[tuple[Tree, bool]], others: Tree | None) -> Tree:
    """Members in their order, each with whether it must be there, then any number of `others`."""
    return sequence("{", Separated(tuple(members), others, COMMA, in_a_row=False), "}")


def json_array(items: Iterable[tuple[Tree, bool]], others: Tree | None) -> Tree:
    return sequence("[", Separated(tuple(items), others, COMMA, in_a_row=True), "]")


def any_scalar() -> Tree:
    return Choice((any_string(), NUMBER, Literal("true"), Literal("false"), Literal("null")))


@lru_cache(maxsize=16)
def any_value(depth: int = ANY_DEPTH) -> Tree:
    """Any JSON value that nests at most `depth` deep."""
    if depth == 0:
        return any_scalar()
    return Choice((any_scalar(), any_object(depth), any_array(depth)))


@lru_cache(maxsize=16)
def any_object(depth: int = ANY_DEPTH) -> Tree:
    return json_object((), member(any_string(), any_value(depth - 1)))


@lru_cache(maxsize=16)
def any_array(depth: int = ANY_DEPTH) -> Tree:
    return json_array((), any_value(depth - 1))


def other_keys(names: Iterable[str]) -> Tree:
    """Any string but `names`, as a key: a trie of the names that every other text leaves."""
    nodes: list[dict[str, int]] = [{}]
    ends = set()
    for name in names:
        at = 0
        for char in name:
            if char not in nodes[at]:
                nodes[at][char] = len(nodes)
                nodes.append({})
            at = nodes[at][char]
        ends.add(at)
    elsewhere = len(nodes)
    edges = [_trie_edges(node, elsewhere) for node in nodes]
    edges.append(((Chars(ANY), elsewhere),))
    return json_string(Machine(tuple(edges), frozenset(range(elsewhere + 1)) - ends))


def _trie_edges(node: Mapping[str, int], elsewhere: int) -> tuple[tuple[Tree, int], ...]:
    known = [(Chars(of_text(char)), child) for char, child in node.items()]
    return (*known, (Chars(complement(of_text("".join(node)))), elsewhere))


def pattern(text: str) -> Tree:
    return Choice(tuple(branch.tree for branch in parse(text, ascii_only=True)))


# Exponents of two digits: larger ones leave the range of floating point.
NUMBER = pattern(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d{1,2})?")
INTEGER = pattern(r"0|-?[1-9]\d*")
MONTH_AND_DAY = r"((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"
YEAR = r"(000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})"
LEAP_YEAR = r"(\d\d(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
DATE = rf"({YEAR}-{MONTH_AND_DAY}|{LEAP_YEAR}-02-29)"
TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
BYTE = r"(\d|[1-9]\d|1\d\d|2[0-4]\d|25[0-5])"
FORMATS = {
    "date": DATE,
    "time": TIME,
    "date-time": rf"{DATE}T{TIME}",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "email": rf"[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@({LABEL}\.)+[A-Za-z]{{2,24}}",
    "ipv4": rf"{BYTE}(\.{BYTE}){{3}}",
}
