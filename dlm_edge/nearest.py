"""The name that was probably meant, for the hint of an error about one that is not known."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str | int]) -> str:
    """A hint: the closest name, or all of them where none is close. Numbers are never corrected."""
    names = [str(each) for each in known]
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close and not name.isdigit() else f"known: {', '.join(names)}"


def unknown_field(message: str, known: Iterable[str]) -> str:
    """For msgspec's message about a field that a struct does not have: " (did you mean NAME?)", or nothing."""
    found = re.search(r"unknown field `([^`]+)`", message)
    close = difflib.get_close_matches(found[1], list(known), n=1) if found else []
    return f" (did you mean {close[0]}?)" if close else ""
