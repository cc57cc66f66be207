"""Lines from a person or a pipe: editing, history and completion where Python has readline."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlm_edge.errors import InputFileError

MAX_LINES = 1000
QUOTES = '"""'  # begins and ends a text of several lines
Read = Callable[[str], str]


def read_message(read: Read, prompt: str) -> str | None:
    """One line, or all of those between quotes; None at the end of input (Ctrl-D) or at Ctrl-C."""
    lines: list[str] = []
    try:
        line = read(prompt)
        if not line.startswith(QUOTES):
            return line
        lines.append(line.removeprefix(QUOTES))
        while not lines[-1].endswith(QUOTES):
            lines.append(read("... "))
        lines[-1] = lines[-1].removesuffix(QUOTES)
    except EOFError:
        if not lines:
            return None
    except KeyboardInterrupt:
        print()
        return None
    return "\n".join(lines)


def read_piped(prompt: str) -> str:
    """A line of standard input; nothing is written for it."""
    try:
        line = sys.stdin.readline()
        line.encode("utf-8")  # where Python reads leniently, a byte that is none became half a surrogate
    except UnicodeError as error:
        raise InputFileError("E-UTF8", "a line of standard input is not UTF-8", "convert it") from error
    if not line:
        raise EOFError
    return line.removesuffix("\n").removesuffix("\r")


@contextmanager
def edited_lines(history: Path | None, words: Sequence[str]) -> Iterator[Read]:
    """`input`, with the lines of earlier runs to go back to and `words` completed by the tabulator key.

    The history is private to the user (mode 600). That it cannot be read or written is said and stops nothing.
    """
    readline = load_readline()
    if readline is None:
        yield input
        return
    readline.set_completer(lambda text, state: next(iter(matching(words, text)[state:]), None))
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    if history is not None:
        try_file(lambda: readline.read_history_file(str(history)) if history.exists() else None)
    try:
        yield input
    finally:
        readline.set_completer(None)
        if history is not None:
            try_file(lambda: write_history(readline, history))


def matching(words: Sequence[str], text: str) -> list[str]:
    return [word for word in words if word.startswith(text)]


def load_readline() -> Any:
    """The module, or None where Python was built without it, as on Windows."""
    try:
        return importlib.import_module("readline")
    except ImportError:
        return None


def write_history(readline: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    readline.set_history_length(MAX_LINES)
    readline.write_history_file(str(path))


def try_file(action: Callable[[], object]) -> None:
    try:
        action()
    except OSError as error:
        print(f"input history: {error.filename}: {error.strerror or error}", file=sys.stderr)


def history_path() -> Path:
    from platformdirs import user_state_path

    return user_state_path("dlm-edge", appauthor=False) / "chat_history"
