"""A job on the terminal or in a pipe, and the Ctrl-C that stops it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlm_edge.runtime import Job


def is_terminal() -> bool:
    """Whether text can be redrawn in place; a terminal that says it is dumb cannot."""
    if not sys.stdout.isatty():
        return False
    from rich.console import Console

    return not Console().is_dumb_terminal


def show_text(job: Job) -> None:
    """The live view where there is a terminal, otherwise the text alone; returns when the job has ended."""
    if is_terminal():
        from dlm_edge.cli.live import show_live

        show_live(job)
    else:
        print_text(job)


def print_text(job: Job) -> None:
    """Committed text as it comes, for a pipe; control characters stay as the model wrote them."""
    from dlm_edge.runtime import Text

    for event in job:
        if isinstance(event, Text):
            print(event.text, end="", flush=True)
    print()


@contextmanager
def stop_on_interrupt(job: Job) -> Iterator[None]:
    """The first Ctrl-C cancels the job and keeps its text; the second one is a KeyboardInterrupt."""

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        job.cancel()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
