"""The examples of a page: which of its code blocks are run, how, and which are marked as not to be run, and why.

```console   lines that begin with "$ " are commands; the others show what they print
```bash      a script, run as a whole with `bash -eu`; what it leaves running is ended behind it
```python    a program
<!-- not run: REASON -->          on the line above a block: shown only
<!-- needs: packed, bundle -->    anywhere on the page: made of `reference` beforehand, in the folder where the page runs
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MARK = re.compile(r"<!-- not run: (.*?) -->\s*")
NEEDS = re.compile(r"<!-- needs: (.*?) -->")
LANGUAGES = ("console", "bash", "python")
SHOWN = ("text", "json", "cpp", "c", "http", "jinja", "html")  # languages that hold no commands
COMMAND = re.compile(r"(\$ )?(dlm-edge|optimum-cli|python3?|pip|pytest|make|sh|bash|curl) \S")


@dataclass(frozen=True, slots=True)
class Example:
    page: Path
    line: int  # of the fence, from 1
    language: str
    text: str
    reason: str | None  # why it is not run

    @property
    def commands(self) -> list[str]:
        """What a shell runs, one after the other; a script is one of them."""
        if self.language == "console":
            return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]
        return [self.text]


def examples(page: Path) -> list[Example]:
    """All blocks that hold something to run. Raises ValueError for one that is neither run nor marked."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found, number = [], 0
    while number < len(lines):
        above = MARK.fullmatch(lines[number - 1]) if number else None
        reason = above[1].strip() if above else None
        if above and not reason:
            raise ValueError(f"{page.name}:{number}: a mark without a reason")
        if lines[number].startswith("```"):
            begin, language = number, lines[number][3:].strip()
            number += 1
            while number < len(lines) and not lines[number].startswith("```"):
                number += 1
            text = "\n".join(lines[begin + 1 : number]) + "\n"
            number += 1
        elif is_indented(lines, number):
            begin, language = number, ""
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number]):
                number += 1
            text = "\n".join(line[4:] for line in lines[begin:number]) + "\n"
            above = MARK.fullmatch(lines[begin - 2]) if begin > 1 else None
            reason = above[1].strip() if above else None
        else:
            number += 1
            continue
        if language in LANGUAGES:
            found.append(Example(page, begin + 1, language, text, reason))
        elif language not in SHOWN and any(COMMAND.match(line) for line in text.splitlines()):
            if reason is None:
                message = f"{page.name}:{begin + 1}: commands that nothing runs; write ```console, ```bash or ```python"
                raise ValueError(f"{message}, or <!-- not run: REASON --> above")
            found.append(Example(page, begin + 1, language, text, reason))
    return found


def is_indented(lines: list[str], number: int) -> bool:
    """A block by indentation: behind an empty line, and not the continuation of a list."""
    if not lines[number].startswith("    ") or number == 0 or lines[number - 1]:
        return False
    before = next((line for line in reversed(lines[:number]) if line and not line.startswith(" ")), "")
    return not before.startswith(("- ", "* ", "1. "))


def needed(page: Path) -> list[str]:
    return [name.strip() for match in NEEDS.findall(page.read_text(encoding="utf-8")) for name in match.split(",")]
