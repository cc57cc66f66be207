"""The text of a grammar in llama.cpp's notation (GBNF), read into rules.

    root   ::= "{" ws (pair ("," ws pair)*)? "}"     # comment
    pair   ::= key ":" ws [0-9]{1,3} ws
    key    ::= "\\"" [^"\\\\\\x00-\\x1F]+ "\\""
    ws     ::= [ \\t\\n]*

Literals and classes are characters, written as themselves or as \\xHH, \\uHHHH, \\UHHHHHHHH, \\n, \\r, \\t, \\\\, \\", \\[, \\], \\-;
`.` is any character. A rule ends where the next `name ::=` begins, so a line may also begin with `|`. Tokens by
number or name (`<[7]>`, `!<think>`) are refused: the text is what is constrained, whatever the tokenizer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.constraints.characters import ANY, LAST, SURROGATES, complement, union
from dlm_edge.runtime.constraints.syntax_tree import Chars, Literal

MAX_CHARACTERS = 1 << 18
MAX_NESTING = 100  # groups in groups; the functions below and in grammar_network.py recurse this deep
MAX_REPEATS = 10_000

_SPACE = re.compile(r"(?:[ \t\r\n]++|#[^\n]*+)*+")  # possessive: "####..." must not be tried in every division
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_DEFINES = re.compile(_SPACE.pattern + "::=")
_REPEATS = re.compile(r"\{\s*([0-9]+)\s*(?:(,)\s*([0-9]+)?\s*)?\}")
_HEX = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-", "^": "^"}


@dataclass(frozen=True, slots=True)
class Reference:
    name: str
    at: int


@dataclass(frozen=True, slots=True)
class Sequence:
    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    options: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    part: Expression
    least: int
    most: int | None  # None: without end


Expression = Literal | Chars | Reference | Sequence | Choice | Repeat


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    at: int
    expression: Expression


def fail(text: str, at: int, message: str, hint: str = "") -> NoReturn:
    """E-PARAM with the line and column (both from 1) of character `at`."""
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    raise UsageProblem("E-PARAM", f"grammar, line {line}, column {column}: {message}", hint)


def read_grammar(text: str) -> dict[str, Rule]:
    """Name to rule. E-PARAM, with line and column, for what is not GBNF, names without a rule, and no rule `root`."""
    if len(text) > MAX_CHARACTERS:
        raise UsageProblem("E-PARAM", f"the grammar has {len(text)} characters", f"give at most {MAX_CHARACTERS}")
    reader = _Reader(text)
    rules = reader.rules()
    for reference in reader.references:
        if reference.name not in rules:
            fail(text, reference.at, f"rule {reference.name!r} is not defined", "add the rule, or correct the name")
    if "root" not in rules:
        raise UsageProblem("E-PARAM", "the grammar has no rule 'root'", "name the rule of the whole text root")
    return rules


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.at, self.references = text, 0, list[Reference]()

    def rules(self) -> dict[str, Rule]:
        rules: dict[str, Rule] = {}
        self.skip_space()
        while self.at < len(self.text):
            begin, name = self.at, self.name()
            if not name or not _DEFINES.match(self.text, self.at):
                fail(self.text, begin, f"found {self.text[begin : begin + 20]!r}, not a rule", "write name ::= ...")
            if name in rules:
                fail(self.text, begin, f"rule {name!r} is defined twice", "keep one of them, or join them with |")
            self.skip_space()
            self.at += len("::=")
            rules[name] = Rule(name, begin, self.choice(depth=0))
        return rules

    def choice(self, depth: int) -> Expression:
        options = [self.sequence(depth)]
        while self.peek() == "|":
            self.at += 1
            options.append(self.sequence(depth))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def sequence(self, depth: int) -> Expression:
        parts = list[Expression]()
        self.skip_space()
        while (part := self.part(depth)) is not None:
            parts.append(self.repeated(part, depth))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def part(self, depth: int) -> Expression | None:
        """The next literal, class, group or name; None at the end of a sequence."""
        begin, character = self.at, self.peek()
        if character == '"':
            return self.literal()
        if character == "[":
            return self.characters()
        if character == ".":
            self.at += 1
            return Chars(ANY)
        if character == "(":
            return self.group(depth)
        if character in ("", "|", ")") and not (character == ")" and depth == 0):
            return None
        if not (name := self.name()):
            hint = "tokens by number or name are not supported: write their text" if character in "<!" else ""
            fail(self.text, begin, f"unexpected {character!r}", hint)
        if _DEFINES.match(self.text, self.at):
            self.at = begin  # the next rule
            return None
        self.references.append(Reference(name, begin))
        return self.references[-1]

    def group(self, depth: int) -> Expression:
        begin = self.at
        if depth == MAX_NESTING:
            fail(self.text, begin, f"groups nested more than {MAX_NESTING} deep", "give the inner ones a rule")
        self.at += 1
        inside = self.choice(depth + 1)
        if self.peek() != ")":
            fail(self.text, begin, "this group is not closed", "add )")
        self.at += 1
        return inside

    def repeated(self, part: Expression, depth: int) -> Expression:
        """`part` with the * + ? {m,n} that follow it."""
        self.skip_space()
        while (character := self.peek()) and character in "*+?{":
            begin, depth = self.at, depth + 1
            if depth > MAX_NESTING:
                fail(self.text, begin, f"more than {MAX_NESTING} repetitions of repetitions")
            part = Repeat(part, *self.repeats())
            self.skip_space()
        return part

    def repeats(self) -> tuple[int, int | None]:
        begin = self.at
        fixed = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(self.text[begin])
        if fixed:
            self.at += 1
            return fixed
        if not (found := _REPEATS.match(self.text, begin)):
            fail(self.text, begin, "this is not {m}, {m,} or {m,n}")
        self.at = found.end()
        least = _bounded(found[1])
        most = least if not found[2] else None if not found[3] else _bounded(found[3])
        if max(least, most or 0) > MAX_REPEATS:
            fail(
                self.text,
                begin,
                f"{found[0][:30]} repeats more than {MAX_REPEATS} times",
                f"give at most {MAX_REPEATS}",
            )
        if most is not None and most < least:
            fail(self.text, begin, f"{found[0]} ends below its beginning")
        return least, most

    def literal(self) -> Literal:
        begin, characters = self.at, list[str]()
        self.at += 1
        while self.peek() not in ('"', "\n", ""):
            characters.append(chr(self.character()))
        self.close(begin, '"')
        return Literal("".join(characters))

    def characters(self) -> Chars:
        begin, ranges = self.at, list[tuple[int, int]]()
        negated = self.text.startswith("[^", begin)
        self.at += 2 if negated else 1
        while self.peek() not in ("]", "\n", ""):
            at, low = self.at, self.character()
            high = low
            if self.peek() == "-" and not self.text.startswith("-]", self.at):
                self.at += 1
                if self.peek() in ("\n", ""):
                    break
                high = self.character()
            if high < low:
                fail(self.text, at, f"the range {self.text[at : self.at]} runs backwards")
            ranges.append((low, high))
        self.close(begin, "]")
        found = complement(ranges) if negated else union(ranges)
        if not found:
            fail(self.text, begin, f"{self.text[begin : self.at]} has no character")
        return Chars(found)

    def character(self) -> int:
        """One character or escape, as a code point."""
        begin, character = self.at, self.text[self.at]
        self.at += 1
        if character == "\\":
            escape = self.peek()
            self.at += 1
            if escape in _HEX:
                digits = self.text[self.at : self.at + _HEX[escape]]
                self.at += len(digits)
                if len(digits) < _HEX[escape] or not re.fullmatch("[0-9A-Fa-f]+", digits):
                    fail(self.text, begin, f"\\{escape} needs {_HEX[escape]} hexadecimal digits")
                code = int(digits, 16)
            elif escape in _ESCAPES:
                code = ord(_ESCAPES[escape])
            else:
                fail(self.text, begin, f"unknown escape {self.text[begin : self.at]!r}")
        else:
            code = ord(character)
        if code > LAST or SURROGATES[0] <= code <= SURROGATES[1]:
            fail(self.text, begin, f"U+{code:04X} is no character")
        return code

    def close(self, begin: int, sign: str) -> None:
        if self.peek() != sign:
            fail(self.text, begin, f"{self.text[begin]} is not closed on this line", f"add {sign}")
        self.at += 1

    def name(self) -> str:
        found = _NAME.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return found[0] if found else ""

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def skip_space(self) -> None:
        found = _SPACE.match(self.text, self.at)
        assert found
        self.at = found.end()


def _bounded(digits: str) -> int:
    """Long runs of digits are not worth converting: they are out of range anyway."""
    return int(digits) if len(digits.lstrip("0")) <= 9 else MAX_REPEATS + 1
