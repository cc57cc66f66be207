"""The journal of a long job: one JSON line for what it is, then one for everything that is finished.

A torn last line is dropped; a line whose files no longer have the recorded sizes and hashes does not count.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dlm_edge import files
from dlm_edge.errors import UsageProblem

JOURNAL = "journal.jsonl"


def drop_damage(path: Path, n_lines: int) -> None:
    """Keep the first `n_lines` lines, those that can be read: the next record follows them directly."""
    data = path.read_bytes()
    kept = b"".join(line + b"\n" for line in data.split(b"\n")[:n_lines])
    if kept != data:
        files.write_file(path, kept)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Complete lines only: what follows the last newline was being written when the run died."""
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for raw in path.read_bytes().split(b"\n")[:-1]:
        try:
            line = json.loads(raw)
        except ValueError:
            break  # damaged: what comes after it is done again
        expected = {"key", "files"} if lines else {"fingerprint"}
        if not isinstance(line, dict) or not expected <= set(line):
            break
        lines.append(line)
    return lines


def files_intact(folder: Path, line: dict[str, Any]) -> bool:
    for entry in line["files"]:
        path = folder / entry["name"]
        if not path.is_file() or path.stat().st_size != entry["size"] or files.sha256_of(path) != entry["sha256"]:
            return False
    return True


def check_same_job(path: Path, fingerprint: dict[str, Any]) -> None:
    """Raise E-RESUME when `path` holds an unfinished run of another command: it may be hours of work."""
    lines = read_journal(path / JOURNAL)
    if lines and lines[0]["fingerprint"].get("job") != fingerprint.get("job"):
        hint = "finish it, choose another folder with -o, or discard it with --restart"
        raise UsageProblem("E-RESUME", f"{path} holds an unfinished run of another command", hint)


def check_fingerprint(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    differing = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
    if differing:
        changes = ", ".join(f"{k}: {found.get(k)!r} then, {wanted.get(k)!r} now" for k in differing)
        raise UsageProblem("E-RESUME", f"{path} was started differently ({changes})", "use --restart to start anew")


def append(path: Path, line: dict[str, Any]) -> None:
    with files.io_errors(path, "cannot write"), files.calls.open(path, "ab") as file:
        files.calls.write(file, json.dumps(line).encode() + b"\n")
        file.flush()
        files.calls.fsync(file.fileno())
