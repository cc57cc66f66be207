"""Sets of characters: as ranges of code points, and as the UTF-8 bytes that spell them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, lru_cache

from dlm_edge.runtime.constraints.syntax_tree import Ranges

LAST = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)  # no characters: UTF-8 cannot spell them
SINK = -1  # in place of a node: the character is complete
Sequences = tuple[tuple[tuple[int, int], ...], ...]
ByteNodes = tuple[tuple[tuple[int, int, int], ...], ...]  # per node its edges: first byte, last byte, node


def union(*sets: Iterable[tuple[int, int]]) -> Ranges:
    """Ascending, with neighbours joined and surrogates taken out."""
    low, high = SURROGATES
    merged: list[tuple[int, int]] = []
    for first, last in sorted(r for ranges in sets for r in ranges):
        for start, end in ((first, min(last, low - 1)), (max(first, high + 1), last)):
            if start > end:
                continue
            if merged and start <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end))
            else:
                merged.append((start, end))
    return tuple(merged)


def complement(ranges: Iterable[tuple[int, int]]) -> Ranges:
    gaps, at = [], 0
    for first, last in union(ranges, [SURROGATES]) if ranges else ():
        if at < first:
            gaps.append((at, first - 1))
        at = last + 1
    return union([*gaps, (at, LAST)] if at <= LAST else gaps)


def minus(ranges: Ranges, taken: Iterable[tuple[int, int]]) -> Ranges:
    """The characters of `ranges` that are not in `taken`."""
    return complement(union(complement(ranges), taken))


def of_text(text: str) -> Ranges:
    return union((ord(c), ord(c)) for c in text)


ANY = union([(0, LAST)])
NOT_NEWLINE = minus(ANY, of_text("\n"))
ASCII_CLASSES = {
    "d": union([(48, 57)]),
    "w": union([(48, 57), (65, 90), (95, 95), (97, 122)]),
    "s": of_text(" \t\n\r\f\v"),
}
UNICODE_TESTS: dict[str, Callable[[str], bool]] = {
    "d": str.isdecimal,
    "w": lambda c: c.isalnum() or c == "_",
    "s": str.isspace,
}


@cache
def unicode_class(letter: str) -> Ranges:
    r"""What \d, \w and \s match in a Python str."""
    holds = UNICODE_TESTS[letter]
    return union((code, code) for code in range(LAST + 1) if holds(chr(code)))


@lru_cache(maxsize=512)
def utf8_nodes(ranges: Ranges) -> ByteNodes:
    """A small automaton over bytes that spells each character of `ranges`; node 0 is the root, SINK the end."""
    nodes: list[tuple[tuple[int, int, int], ...]] = [()]
    known: dict[Sequences, int] = {}

    def node_of(sequences: Sequences) -> int:
        if sequences in known:
            return known[sequences]
        edges = tuple(grouped(sequences))
        nodes.append(edges)
        known[sequences] = len(nodes) - 1
        return known[sequences]

    def grouped(sequences: Sequences) -> Iterable[tuple[int, int, int]]:
        tails: dict[tuple[int, int], list[tuple[tuple[int, int], ...]]] = {}
        for head, *tail in sequences:  # first bytes are equal or apart, because the sequences are
            tails.setdefault(head, []).append(tuple(tail))
        for (first, last), rest in tails.items():
            yield first, last, SINK if rest == [()] else node_of(tuple(rest))

    nodes[0] = tuple(grouped(tuple(s for first, last in ranges for s in byte_sequences(first, last))))
    return tuple(nodes)


def byte_sequences(first: int, last: int) -> Iterable[tuple[tuple[int, int], ...]]:
    """Ranges per byte whose products are the encodings of the code points first .. last, in ascending order."""
    for limit in (0x7F, 0x7FF, 0xFFFF):  # longer encodings begin after these
        if first <= limit < last:
            yield from byte_sequences(first, limit)
            yield from byte_sequences(limit + 1, last)
            return
    for n_tail in (1, 2, 3) if last > 0x7F else ():
        mask = (1 << (6 * n_tail)) - 1  # the bits of the last n_tail bytes
        if first & ~mask != last & ~mask:
            if first & mask:
                cut = first | mask
            elif last & mask != mask:
                cut = (last & ~mask) - 1
            else:
                continue
            yield from byte_sequences(first, cut)
            yield from byte_sequences(cut + 1, last)
            return
    yield tuple(zip(chr(first).encode(), chr(last).encode(), strict=True))
