"""Tables that a tool writes into a page between two marks, and the check that the page has them as they would be now."""

from __future__ import annotations

import sys
from pathlib import Path


def write_tables(page: Path, tables: str, begin: str, end: str, tool: str, arguments: list[str]) -> int:
    """Exit code; with the argument --check nothing is written, and 1 says that the page is out of date."""
    found = page.read_text(encoding="utf-8")
    before, rest = found.split(begin)
    _, after = rest.split(end)
    text = before + begin + tables + end + after
    if arguments != ["--check"]:
        page.write_text(text, encoding="utf-8")
    elif text != found:
        print(f"the tables of docs/{page.name} are out of date: python tools/{tool}.py", file=sys.stderr)
        return 1
    return 0
