"""A terminal of a few lines: what a stream of characters and control sequences leaves on the screen."""

from __future__ import annotations

import re
import unicodedata

from rich.cells import cell_len

SEQUENCE = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])")


class Screen:
    """Only what the live view writes: text, CR, LF, cursor up, erase in line, colours. Anything else is an error.

    Lines remember what was written as one, so that `resize` can wrap them again, as most terminals do.
    """

    def __init__(self, width: int = 20) -> None:
        self.width = width
        self.rows: list[list[str]] = [[]]  # cells; a wide character is followed by an empty one
        self.joined: list[bool] = [False]  # whether a row goes on in the next one
        self.row = self.column = 0
        self.styles: list[str] = []

    def feed(self, text: str) -> None:
        while text:
            if match := SEQUENCE.match(text):
                self.control(match[1], match[2])
                text = text[match.end() :]
                continue
            self.put(text[0])
            text = text[1:]

    def control(self, numbers: str, letter: str) -> None:
        if letter == "A":
            self.row -= int(numbers or 1)
            assert self.row >= 0, "above the screen"
        elif letter == "K":
            assert numbers == "2"
            self.rows[self.row], self.joined[self.row] = [], False
            if self.row:
                self.joined[self.row - 1] = False
        elif letter == "m":
            self.styles.append(numbers)
        else:
            assert (numbers, letter) in (("?25", "l"), ("?25", "h")), (numbers, letter)

    def put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.row, self.column = self.row + 1, 0
            if self.row == len(self.rows):
                self.rows.append([])
                self.joined.append(False)
        else:
            cells = cell_len(character)
            if not cells and unicodedata.combining(character):
                row = self.rows[self.row]
                row[self.column - 1] += character
                return
            assert character.isprintable(), repr(character)
            if self.column + cells > self.width:
                self.joined[self.row] = True
                self.put("\n")
            row = self.rows[self.row]
            row += [" "] * (self.column - len(row))
            row[self.column : self.column + cells] = [character, *[""] * (cells - 1)]
            self.column += cells

    def resize(self, width: int) -> None:
        """Wrap every written line again; the cursor stays behind the last character."""
        again = Screen(width)
        again.feed("\n".join(self.lines()))
        self.__dict__ |= again.__dict__ | {"styles": self.styles}

    @property
    def text(self) -> str:
        """With rows that the terminal wrapped as one line."""
        return "\n".join(line.rstrip() for line in self.lines()).rstrip("\n")

    def lines(self) -> list[str]:
        lines = [""]
        for row, goes_on in zip(self.rows, self.joined, strict=True):
            lines[-1] += "".join(row)
            if not goes_on:
                lines.append("")
        return lines[:-1]
