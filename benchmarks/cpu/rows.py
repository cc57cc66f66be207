"""Measured rows on disk: each is written when it is finished, so that a run that was cut off goes on where it stopped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from dlm_edge import files
from dlm_edge.errors import InputFileError

Row = dict[str, Any]


class Rows:
    """By section and key. `about` says where they were measured; only `same_machine` of it has to agree to go on.

    Rows of several threads, which the wall clock timed, are measured again where other programs kept more than `bearable`
    cores busy.
    """

    def __init__(
        self, path: Path, about: dict[str, Any], same_machine: tuple[str, ...], bearable: float = math.inf
    ) -> None:
        """Raises E-RESUME when the file is of another machine."""
        self.path, self.content = path, {**about, "rows": dict[str, dict[str, Row]]()}
        self.bearable = bearable
        if path.exists():
            self.content = json.loads(path.read_text())
            different = [key for key in same_machine if self.content.get(key) != about[key]]
            if different:
                message = f"{path} was measured elsewhere ({', '.join(different)})"
                raise InputFileError("E-RESUME", message, "give another --json")

    def section(self, name: str) -> dict[str, Row]:
        rows: dict[str, dict[str, Row]] = self.content["rows"]
        return rows.setdefault(name, {})

    def lacks(self, section: str, key: str) -> bool:
        row = self.section(section).get(key)
        if row is None:
            return True
        return row.get("threads", 1) > 1 and (row.get("other_programs") or 0.0) > self.bearable

    def add(self, section: str, key: str, row: Row) -> None:
        if self.path.exists():  # a run of other sections may have added to it meanwhile
            self.content = json.loads(self.path.read_text())
        self.section(section)[key] = row
        files.write_json(self.path, self.content)
