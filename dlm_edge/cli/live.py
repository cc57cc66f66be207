"""The live view on a terminal: committed words, words that wait for their neighbours, and masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text as Line

from dlm_edge.runtime import Finished, Frame, Result, Text

if TYPE_CHECKING:
    from dlm_edge.runtime import Job

MASK = "░"


def show_live(job: Job) -> None:
    """Redraw the text at every step; when it ends, the plain text and one line of numbers stay."""
    console, committed, frame = Console(highlight=False), "", None
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for event in job:
            if isinstance(event, Text):
                committed += event.text
            elif isinstance(event, Frame):
                frame = event
            elif isinstance(event, Finished):
                break
            live.update(draw(committed, frame, console.height - 1), refresh=True)
    result = job.result()
    print(printable(result.text))
    Console(stderr=True, highlight=False).print(summary(result), style="dim")


def draw(committed: str, frame: Frame | None, height: int) -> Line:
    """The last lines of the text, and behind it the slots of the block, dimmer the less sure the model is."""
    line = Line("\n".join(printable(committed).split("\n")[-max(height - 3, 1) :]))
    for cell in frame.cells if frame else ():
        if cell.text is None:
            line.append(MASK, style="cyan" if cell.confidence > 0.5 else "bright_black")
        else:
            line.append(printable(cell.text), style="green")
    return line


def printable(text: str) -> str:
    """Control characters of the model's shown, not obeyed: they could rewrite the terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def summary(result: Result) -> str:
    rate = f"{result.effective_tokens_per_s:.1f} tokens/s"
    passes = f"{result.steps} steps, {result.forward_passes} passes"
    return f"{result.new_tokens} tokens in {result.seconds:.2f} s, {rate}, {passes}, stopped by {result.stop_reason}"
