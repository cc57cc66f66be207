"""The live view on a terminal: committed words, words that wait for their neighbours, and masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text as Line

from dlm_edge.runtime import Cell, Finished, Frame, Result, Started, Text

if TYPE_CHECKING:
    from dlm_edge.runtime import Job

MASK = "░"


def show_live(job: Job, console: Console | None = None) -> None:
    """Redraw the end of the text at every step; when the job ends, the plain text and one line of numbers stay."""
    view = LiveView(console or Console(highlight=False))
    try:
        for event in job:
            if isinstance(event, Started):
                view.note(f"reading {event.prompt_tokens} tokens")
            elif isinstance(event, Text):
                view.commit(event.text)
            elif isinstance(event, Frame):
                view.show(event.cells)
            elif isinstance(event, Finished):
                break
    finally:  # the text stays whatever ends the loop, a second Ctrl-C too
        view.finish()
    Console(stderr=True, highlight=False).print(summary(job.result()), style="dim")


class LiveView:
    """Whole lines are printed once and left to the terminal; the line being written and the canvas are redrawn in place."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.tail = ""  # committed text that is not left to the terminal yet
        self._drawn: list[int] = []  # cells of every row to be erased
        console.show_cursor(False)

    def note(self, text: str) -> None:
        self._draw(Line(text, style="dim"))

    def commit(self, text: str) -> None:
        """Seen with the next frame, which follows at once: the last one still holds what is committed now."""
        self.tail += text

    def show(self, cells: Sequence[Cell]) -> None:
        lines, newline, rest = self.tail.rpartition("\n")
        if newline:
            self._erase()
            self._write(lines)
            self.tail = rest
        self._draw(canvas(self.tail, cells))

    def finish(self) -> None:
        self._erase()
        if self.tail:
            self._write(self.tail)
        self.console.show_cursor(True)

    def _write(self, text: str) -> None:
        """Without line breaks of ours: the terminal wraps it, and copies it as one line."""
        self.console.file.write(printable(text) + "\n")
        self.console.file.flush()

    def _draw(self, line: Line) -> None:
        width, height = self.console.size
        # One column stays free: terminals differ in where the cursor is after the last one.
        rows = line.wrap(self.console, max(width - 1, 1), overflow="fold")[-max(height - 1, 1) :]
        self._erase()
        for number, row in enumerate(rows):
            self.console.print(row, end="\n" if number < len(rows) - 1 else "", no_wrap=True, crop=False)
        self._drawn = [row.cell_len for row in rows]

    def _erase(self) -> None:
        """A terminal that became narrower has wrapped the rows again, so they are counted at its present width."""
        width, height = self.console.size
        rows = min(sum(max(math.ceil(cells / width), 1) for cells in self._drawn), height)
        if rows:
            up = [(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)] * (rows - 1)
            self.console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *up))
        self._drawn = []


def canvas(committed: str, cells: Sequence[Cell]) -> Line:
    """The line being written, and behind it the slots of the block, dimmer the less sure the model is."""
    line = Line(printable(committed))
    for cell in cells:
        if cell.text is None:
            line.append(MASK, style="cyan" if cell.confidence > 0.5 else "bright_black")
        else:
            line.append(printable(cell.text), style="green" if cell.confidence > 0.5 else "dim green")
    return line


def printable(text: str) -> str:
    """Control characters of the model's shown, not obeyed: they could rewrite the terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def summary(result: Result) -> str:
    rate = f"{result.effective_tokens_per_s:.1f} tokens/s"
    passes = f"{result.steps} steps, {result.forward_passes} passes"
    return f"{result.new_tokens} tokens in {result.seconds:.2f} s, {rate}, {passes}, stopped by {result.stop_reason}"
