"""Which packages this installation asks for, by extra, and whether those that are there will do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[([^\]]*)\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?")
CLAUSE = re.compile(r"\s*(>=|<=|==|!=|<|>)\s*([0-9][0-9.]*)")
EXTRA = re.compile(r"extra\s*==\s*['\"]([\w.-]+)['\"]")


@dataclass(frozen=True, slots=True)
class Requirement:
    name: str
    versions: str  # as in ">=1.24.4,<2"; empty: any
    extra: str | None  # None: every installation needs it

    def accepts(self, version: str) -> bool:
        """By the numbers alone: a release candidate counts as its release, a local part (+cpu) as nothing."""
        found = numbers(version)
        for operator, text in CLAUSE.findall(self.versions):
            wanted = numbers(text)
            order = (found > wanted) - (found < wanted)
            if not {
                ">=": order >= 0,
                "<=": order <= 0,
                "==": order == 0,
                "!=": order != 0,
                "<": order < 0,
                ">": order > 0,
            }[operator]:
                return False
        return True


@cache
def requirements() -> tuple[Requirement, ...]:
    """From the installed distribution, or from the pyproject.toml of a checkout that is used in place."""
    try:
        lines = metadata.requires("dlm-edge") or []
    except metadata.PackageNotFoundError:
        lines = read_pyproject()
    return tuple(found for line in lines if (found := parse(line)) is not None)


def parse(line: str) -> Requirement | None:
    """None for our own extras inside an extra, and for what the marker leaves to another system than any."""
    match = NAME.match(line)
    if match is None or match[1].lower() == "dlm-edge":
        return None
    extra = EXTRA.search(match[4] or "")
    lowest_first = ",".join(sorted(map(str.strip, match[3].split(",")), reverse=True))  # builders of metadata sort them
    return Requirement(match[1], lowest_first, extra[1] if extra else None)


def read_pyproject() -> list[str]:
    path = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if not path.is_file():
        return []
    import tomllib

    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].items()
    return [*project["dependencies"], *(f"{line}; extra == '{extra}'" for extra, lines in extras for line in lines)]


def numbers(version: str) -> tuple[int, ...]:
    """1.10.0+cpu as (1, 10): zeros at the end say nothing."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    found = [int(part) for part in match[0].split(".")] if match else []
    while found and not found[-1]:
        found.pop()
    return tuple(found)
