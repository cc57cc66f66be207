"""The rules of a grammar as one network of items over UTF-8 bytes, and what each item costs to finish.

A recursive transition network (Woods 1970): an item reads one byte of a set, chooses, or calls a rule and goes on
after it; item END returns to the caller. Items are built from their end and kept once per content, so that equal ends
of different rules are one item; a call with nothing after it is a tail call, which needs no frame to return to.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from dlm_edge.runtime.constraints.characters import byte_sequences
from dlm_edge.runtime.constraints.grammar_text import (
    Choice,
    Expression,
    Reference,
    Repeat,
    Rule,
    fail,
    read_grammar,
)
from dlm_edge.runtime.constraints.grammar_text import Sequence as Parts
from dlm_edge.runtime.constraints.strongly_connected import components
from dlm_edge.runtime.constraints.syntax_tree import Chars, Literal

MAX_ITEMS = 20_000
MAX_BUILD_STEPS = 200_000  # repetitions of what is empty take steps and no items
INFINITY = float("inf")
END = 0


class GrammarNetwork:
    """Items are numbers; of item i:

    masks[i]    the bytes it reads, as bits of an integer; 0: not a reader
    choices[i]  the items it chooses from; (): not a choice
    entries[i]  the first item of the rule it calls; END: not a call
    then[i]     the item after the byte or the call
    root        the first item of rule root
    """

    def __init__(self, text: str) -> None:
        """E-PARAM for a text that is no grammar, a rule that derives no finite text, left recursion, a size too large.

        A rule's alternatives that begin with the rule itself are rewritten: a ::= b | a c becomes a ::= b c*.
        """
        self.masks, self.choices, self.entries, self.then = [0], list[tuple[int, ...]]([()]), [END], [END]
        self._numbers: dict[tuple[int, tuple[int, ...], int, int], int] = {}
        self._steps, self._text = 0, text
        rules = read_grammar(text)
        self._rule = rules["root"]
        self._first = {name: self._placeholder() for name in rules}
        self._rule_of = {first: rules[name] for name, first in self._first.items()}
        for rule in rules.values():
            self._rule = rule
            self.choices[self._first[rule.name]] = (self._build(_without_left_recursion(rule), END),)
        self.root = self._first["root"]
        self._link()
        self._check_productive()
        self._check_left_recursion()

    def spread(self, item: int) -> tuple[list[int], bool]:
        """The readers and calls that `item` chooses from, directly or not, and whether END is among them."""
        found, ends, seen, work = list[int](), False, {item}, [item]
        while work:
            at = work.pop()
            if at == END:
                ends = True
            elif not self.choices[at]:
                found.append(at)
            for choice in self.choices[at]:
                if choice not in seen:
                    seen.add(choice)
                    work.append(choice)
        return found, ends

    def fewest_bytes(self, called: Sequence[float] | None = None) -> list[float]:
        """For each item the fewest bytes from it to END of its rule: Knuth 1977, A generalization of Dijkstra's algorithm.

        `called` replaces the cost of the first items of called rules, where they need frames that are not free.
        """
        cost = [INFINITY] * len(self.then)
        cost[END] = 0.0
        heap = [(0.0, END)]
        while heap:
            here, item = heapq.heappop(heap)
            if here > cost[item]:
                continue
            for user in self._users[item]:
                if not self.entries[user]:
                    through = here + (self.masks[user] != 0)
                elif self.then[user] == END:
                    through = here
                else:
                    through = (called or cost)[self.entries[user]] + cost[self.then[user]]
                if through < cost[user]:
                    cost[user] = through
                    heapq.heappush(heap, (through, user))
        return cost

    def fewest_bytes_by_frames(self, frames: int) -> list[list[float]]:
        """[n][item]: the fewest bytes to END with at most n calls open that have to return. The last holds for more."""
        costs = [self.fewest_bytes([INFINITY] * len(self.then))]
        while len(costs) <= frames:
            costs.append(self.fewest_bytes(costs[-1]))
            if costs[-1] == costs[-2]:
                return costs[:-1]
        return costs

    def _build(self, expression: Expression, then: int) -> int:
        """The item that reads `expression` and goes on at `then`."""
        self._step()
        match expression:
            case Literal(text):
                self._step(len(text))
                for byte in reversed(text.encode()):
                    then = self._item(mask=1 << byte, then=then)
                return then
            case Chars(ranges):
                sequences = [utf8 for low, high in ranges for utf8 in byte_sequences(low, high)]
                self._step(len(sequences))
                return self._choice([self._byte_ranges(utf8, then) for utf8 in sequences])
            case Reference(name):
                return self._item(entry=self._first[name], then=then)
            case Choice(options):
                return self._choice([self._build(option, then) for option in options])
            case Repeat():
                return self._repeat(expression, then)
            case Parts(parts):
                for part in reversed(parts):
                    then = self._build(part, then)
                return then

    def _repeat(self, repeat: Repeat, then: int) -> int:
        """x{2,4} is x x (x (x)?)?; x{2,} is x x+."""
        copies, item = repeat.least, then
        if repeat.most is None:
            loop = self._placeholder()
            body = self._build(repeat.part, loop)
            self.choices[loop] = (body, then)
            item, copies = (loop, 0) if copies == 0 else (body, copies - 1)
        else:
            for _ in range(repeat.most - repeat.least):
                item = self._choice([self._build(repeat.part, item), then])
        for _ in range(copies):
            item = self._build(repeat.part, item)
        return item

    def _byte_ranges(self, utf8: Sequence[tuple[int, int]], then: int) -> int:
        for low, high in reversed(utf8):
            then = self._item(mask=(1 << high + 1) - (1 << low), then=then)
        return then

    def _choice(self, items: Sequence[int]) -> int:
        """Readers that go on at the same item become one."""
        readers, others = dict[int, int](), set[int]()
        for item in items:
            if self.masks[item]:
                readers[self.then[item]] = readers.get(self.then[item], 0) | self.masks[item]
            else:
                others.add(item)
        others.update(self._item(mask=mask, then=then) for then, mask in readers.items())
        return others.pop() if len(others) == 1 else self._item(choices=tuple(sorted(others)))

    def _item(self, *, mask: int = 0, choices: tuple[int, ...] = (), entry: int = END, then: int = END) -> int:
        content = (mask, choices, entry, then)
        if content not in self._numbers:
            self._numbers[content] = self._placeholder()
            self.masks[-1], self.choices[-1], self.entries[-1], self.then[-1] = content
        return self._numbers[content]

    def _placeholder(self) -> int:
        """A choice whose options are set later."""
        if len(self.then) == MAX_ITEMS:
            self._too_large(f"{MAX_ITEMS} items (bytes, choices and calls)")
        self.masks.append(0)
        self.choices.append(())
        self.entries.append(END)
        self.then.append(END)
        return len(self.then) - 1

    def _step(self, steps: int = 1) -> None:
        self._steps += steps
        if self._steps > MAX_BUILD_STEPS:
            self._too_large(f"{MAX_BUILD_STEPS} steps to build")

    def _too_large(self, limit: str) -> None:
        message = f"with rule {self._rule.name!r} the grammar needs more than {limit}"
        fail(self._text, self._rule.at, message, "use smaller {m,n} or fewer rules")

    def _link(self) -> None:
        self._users: list[list[int]] = [[] for _ in self.then]
        for item in range(1, len(self.then)):
            for used in self.choices[item] or {self.entries[item], self.then[item]} - {END} or {END}:
                self._users[used].append(item)

    def _check_productive(self) -> None:
        """A rule that never ends is, or calls, one that comes back to itself whatever is chosen: that one is named."""
        self._fewest = self.fewest_bytes()
        endless = [item for item, cost in enumerate(self._fewest) if cost == INFINITY]
        if not endless:
            return
        component = components(len(self.then), lambda item: {*self.choices[item], self.entries[item], self.then[item]})
        for item in endless:
            entry = self.entries[item]
            if entry and self._fewest[entry] == INFINITY and component[item] == component[entry]:
                rule = self._rule_of[entry]
                fail(
                    self._text, rule.at, f"rule {rule.name!r} never comes to an end", "give it an alternative that does"
                )
        raise AssertionError("items that never end do so by a call")

    def _check_left_recursion(self) -> None:
        """Left recursion is a circle of items that reads nothing and enters a rule."""
        component = components(len(self.then), self._without_reading)
        for item in range(len(self.then)):
            if self.entries[item] and component[item] == component[self.entries[item]]:
                rule = self._rule_of[self.entries[item]]
                hint = "let its alternatives begin with something else, or repeat with *"
                fail(self._text, rule.at, f"rule {rule.name!r} is left-recursive", hint)

    def _without_reading(self, item: int) -> Iterator[int]:
        yield from self.choices[item]
        if entry := self.entries[item]:
            yield entry
            if self._fewest[entry] == 0:
                yield self.then[item]


def _without_left_recursion(rule: Rule) -> Expression:
    options = rule.expression.options if isinstance(rule.expression, Choice) else (rule.expression,)
    tails, others = list[Expression](), list[Expression]()
    for option in options:
        parts = option.parts if isinstance(option, Parts) else (option,)
        if parts and isinstance(parts[0], Reference) and parts[0].name == rule.name:
            tails.append(Parts(parts[1:]))
        else:
            others.append(option)
    if not tails or not others:
        return rule.expression
    return Parts((Choice(tuple(others)), Repeat(Choice(tuple(tails)), 0, None)))
