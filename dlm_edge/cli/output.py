"""What all verbs print alike: results on stdout, progress on stderr, every number with its unit."""

from __future__ import annotations

import json
import sys
from typing import Any

from dlm_edge.cli.common_options import is_quiet


def print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def progress_line(text: str) -> None:
    """A line, never a bar: what a pipe collects stays readable. Nothing with -q."""
    if not is_quiet():
        print(text, file=sys.stderr, flush=True)


def size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024 or unit == "GiB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    raise AssertionError


def table(rows: list[list[str]]) -> str:
    """Rows with a header as aligned columns: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
