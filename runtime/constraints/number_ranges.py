"""Numbers between two bounds, as an automaton over their digits: exact, and without exponents.

Digits are compared with those of the bounds from the left, as long as they are equal to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from dlm_edge.runtime.constraints.characters import of_text
from dlm_edge.runtime.constraints.syntax_tree import NOTHING, Chars, Choice, Machine, Tree, sequence

DIGITS = "0123456789"
# (phase, digits read or still to read, equal to the lower bound so far, equal to the upper, remainder of a division)
Key = tuple[str, int, bool, bool, int]


@dataclass(frozen=True, slots=True)
class Bound:
    value: Decimal
    is_exclusive: bool = False

    def negated(self) -> Bound:
        return Bound(-self.value, self.is_exclusive)


def integers(low: Bound | None, high: Bound | None, multiple: int = 1) -> Tree:
    """Integers between the bounds, and of these the multiples of `multiple`."""
    lowest = None if low is None else _integer(low.value, ROUND_CEILING, low.is_exclusive)
    highest = None if high is None else _integer(high.value, ROUND_FLOOR, high.is_exclusive)
    return _signed(lowest, highest, multiple, False)


def decimals(low: Bound | None, high: Bound | None) -> Tree:
    return _signed(low, high, 1, True)


def _integer(value: Decimal, rounding: str, is_exclusive: bool) -> Bound:
    whole = value.to_integral_value(rounding)
    if is_exclusive and whole == value:
        whole += 1 if rounding == ROUND_CEILING else -1
    return Bound(whole)


def _signed(low: Bound | None, high: Bound | None, multiple: int, fraction: bool) -> Tree:
    zero, ways = Bound(Decimal(0)), list[Tree]()
    if high is None or high.value >= 0:
        ways.append(_Magnitudes(low if low and low.value >= 0 else zero, high, multiple, fraction).tree())
    if low is None or low.value < 0:  # no minus zero: what follows the sign is more than 0
        least = high.negated() if high and high.value < 0 else Bound(Decimal(0), is_exclusive=True)
        if not fraction and least.is_exclusive:
            least = Bound(Decimal(1))
        ways.append(sequence("-", _Magnitudes(least, low.negated() if low else None, multiple, fraction).tree()))
    return Choice(tuple(ways))


class _Magnitudes:
    """Numbers without a sign from `low` to `high`."""

    def __init__(self, low: Bound, high: Bound | None, multiple: int, fraction: bool) -> None:
        self.low, self.high, self.multiple, self.fraction = low, high, multiple, fraction
        self.low_whole, self.low_rest = _digits(low.value)
        self.high_whole, self.high_rest = _digits(high.value) if high else ("", "")
        self.n_rest = max(len(self.low_rest), len(self.high_rest))
        self.length = 0  # of the whole part, at present
        self.numbers: dict[Key, int] = {}
        self.edges: list[list[tuple[str, Key]]] = []

    def tree(self) -> Tree:
        """A choice by the length of the whole part, for no number begins with a 0 that could be left out."""
        if self.high is not None and self.high.value < self.low.value:
            return NOTHING
        last = len(self.high_whole) if self.high else len(self.low_whole)
        ways = [self._of_length(n) for n in range(len(self.low_whole), last + 1)]
        if self.high is None:
            ways.append(self._of_length(len(self.low_whole) + 1, or_longer=True))
        return Choice(tuple(ways))

    def _of_length(self, length: int, *, or_longer: bool = False) -> Tree:
        self.length, self.numbers, self.edges = length, {}, []
        is_low, is_high = length == len(self.low_whole), self.high is not None and length == len(self.high_whole)
        keys: list[Key] = [("whole", 0, is_low, is_high, 0)]
        table: dict[Key, list[tuple[str, Key]]] = {}
        while keys:
            key = keys.pop()
            if key not in table:
                table[key] = self._steps(key, or_longer)
                keys += [after for _, after in table[key]]
        number = {key: i for i, key in enumerate(table)}
        edges = []
        for steps in table.values():
            joined: dict[Key, str] = {}
            for char, after in steps:
                joined[after] = joined.get(after, "") + char
            edges.append(tuple((Chars(of_text(chars)), number[after]) for after, chars in joined.items()))
        return Machine(tuple(edges), frozenset(number[key] for key in table if self._accepts(key)))

    def _steps(self, key: Key, or_longer: bool) -> list[tuple[str, Key]]:
        phase, at, is_low, is_high, rest = key
        if phase == "point":
            return self._digit_steps("rest", 0, is_low, is_high, 0, DIGITS)
        if phase == "rest":
            return self._digit_steps("rest", at, is_low, is_high, 0, DIGITS)
        steps = []
        if at < self.length or or_longer:
            allowed = DIGITS[1:] if at == 0 and (self.length > 1 or or_longer) else DIGITS
            steps = self._digit_steps("whole", at, is_low, is_high, rest, allowed)
        if at == self.length and self.fraction:
            steps.append((".", ("point", 0, is_low, is_high, 0)))
        return steps

    def _digit_steps(
        self, phase: str, at: int, is_low: bool, is_high: bool, rest: int, allowed: str
    ) -> list[tuple[str, Key]]:
        low, high = (self.low_whole, self.high_whole) if phase == "whole" else (self.low_rest, self.high_rest)
        least, most = (each[at] if at < len(each) else "0" for each in (low, high))
        after = min(at + 1, self.length if phase == "whole" else self.n_rest)
        return [
            (d, (phase, after, is_low and d == least, is_high and d == most, (10 * rest + int(d)) % self.multiple))
            for d in allowed
            if not (is_low and d < least) and not (is_high and d > most)
        ]

    def _accepts(self, key: Key) -> bool:
        """What was read and followed by zeros is the value; while equal to a bound, that decides."""
        phase, at, is_low, is_high, rest = key
        if phase == "point" or (phase == "whole" and at < self.length) or rest:
            return False
        read = 0 if phase == "whole" else at
        if is_low and (self.low_rest[read:].strip("0") or self.low.is_exclusive):
            return False
        return not (
            is_high and not self.high_rest[read:].strip("0") and self.high is not None and self.high.is_exclusive
        )


def _digits(value: Decimal) -> tuple[str, str]:
    whole, _, rest = f"{value:f}".partition(".")
    return whole, rest
