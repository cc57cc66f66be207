"""Long jobs that survive being killed: a work folder beside the output, and a journal of what is finished.

    with WorkFolder.open(out, fingerprint, resume=True, restart=False) as work:
        if not work.is_done("layer-3"):
            ... write files under work.path ...
            work.record("layer-3", names=["layer-3.safetensors"], error=0.01)
        work.finish()

A record is one JSON line, written and synced after the files it names; a torn last line is dropped, a file
that no longer has its recorded size and hash makes its record void. `finish` renames the whole folder, so
the output is either the old one or the complete new one.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dlm_edge import files
from dlm_edge.errors import JobError, UsageProblem

JOURNAL = "journal.jsonl"


class WorkFolder:
    def __init__(self, out: Path, path: Path, records: dict[str, dict[str, Any]]) -> None:
        self.out, self.path, self.records = out, path, records

    @classmethod
    @contextmanager
    def open(
        cls,
        out: Path,
        fingerprint: dict[str, Any],
        *,
        resume: bool,
        restart: bool,
        discard_unfinished: bool = False,
    ) -> Iterator[WorkFolder]:
        """Lock `out`, and start or resume its work folder.

        Raises E-EXISTS when `out` is there and `restart` was not asked for, E-BUSY when another process
        works on it, E-RESUME when the started job had other settings (or none was asked to be resumed).
        `discard_unfinished`: for jobs that are cheaper to do again than to resume.
        """
        path = out.with_name(out.name + ".partial")
        files.make_folder(out.parent)
        lock = FileLock(lock_path(out))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise JobError("E-BUSY", f"another run is writing {out}", "wait for it, or choose another folder") from None
        try:
            recover(out)
            if out.exists() and not restart:
                hint = "choose another folder with -o, or replace it with --restart"
                raise UsageProblem("E-EXISTS", f"{out} exists already", hint)
            if (restart or discard_unfinished) and path.exists():
                with files.io_errors(path, "cannot remove"):
                    files.calls.rmtree(path)
            yield cls(out, path, cls._start(out, path, fingerprint, resume))
        finally:
            lock.release()

    @classmethod
    def _start(
        cls, out: Path, path: Path, fingerprint: dict[str, Any], resume: bool
    ) -> dict[str, dict[str, Any]]:
        lines = read_journal(path / JOURNAL)
        if lines:
            if not resume:
                hint = "continue it with --resume, or start anew with --restart"
                raise UsageProblem("E-RESUME", f"{path} holds an unfinished run", hint)
            check_fingerprint(lines[0]["fingerprint"], json.loads(json.dumps(fingerprint)), path)
            files.remove_leftovers(path)
            truncate_to_last_line(path / JOURNAL)
            return {line["key"]: line for line in lines[1:] if files_intact(path, line)}
        if path.exists():  # created, but killed before the first journal line: nothing in it counts
            with files.io_errors(path, "cannot remove"):
                files.calls.rmtree(path)
        files.make_folder(path)
        _append(path / JOURNAL, {"fingerprint": fingerprint, "pid": os.getpid()})
        return {}

    def is_done(self, key: str) -> bool:
        return key in self.records

    def record(self, key: str, *, names: list[str], **info: Any) -> None:
        """Note that `key` is finished and that its files, already written, have these sizes and hashes."""
        entries = [
            {"name": n, "size": (self.path / n).stat().st_size, "sha256": files.sha256_of(self.path / n)} for n in names
        ]
        line = {"key": key, "files": entries, **info}
        _append(self.path / JOURNAL, line)
        self.records[key] = line

    def finish(self) -> None:
        """Put the work folder in the place of the output; the journal does not travel."""
        with files.io_errors(self.out, "cannot finish"):
            files.calls.unlink(self.path / JOURNAL)
            old = self.out.with_name(self.out.name + ".old")
            if self.out.exists():
                files.calls.replace(self.out, old)
            files.calls.replace(self.path, self.out)
            files.sync_folder(self.out.parent)
            if old.exists():
                files.calls.rmtree(old)


def recover(out: Path) -> None:
    """Mend a kill between the two renames of `finish`: the old output goes back, or away."""
    old = out.with_name(out.name + ".old")
    if not old.exists():
        return
    with files.io_errors(out, "cannot recover"):
        if out.exists():
            files.calls.rmtree(old)
        else:
            files.calls.replace(old, out)


def lock_path(out: Path) -> Path:
    """Outside the output's folder, so that nothing is left there; the kernel drops the lock with the process."""
    folder = Path(tempfile.gettempdir()) / f"dlm-edge-locks-{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    return folder / (hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:24] + ".lock")


def truncate_to_last_line(path: Path) -> None:
    """Drop the torn line of a killed run, so that the next record starts on a line of its own."""
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        files.write_file(path, data[: data.rfind(b"\n") + 1])


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Complete lines only: what follows the last newline was being written when the run died."""
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for raw in path.read_bytes().split(b"\n")[:-1]:
        try:
            lines.append(json.loads(raw))
        except ValueError:
            break  # damaged: what comes after it is done again
    return lines if lines and "fingerprint" in lines[0] else []


def files_intact(folder: Path, line: dict[str, Any]) -> bool:
    for entry in line["files"]:
        path = folder / entry["name"]
        if not path.is_file() or path.stat().st_size != entry["size"] or files.sha256_of(path) != entry["sha256"]:
            return False
    return True


def check_fingerprint(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    differing = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
    if differing:
        changes = ", ".join(f"{k}: {found.get(k)!r} then, {wanted.get(k)!r} now" for k in differing)
        raise UsageProblem("E-RESUME", f"{path} was started differently ({changes})", "use --restart to start anew")


def _append(path: Path, line: dict[str, Any]) -> None:
    with files.io_errors(path, "cannot write"), files.calls.open(path, "ab") as file:
        files.calls.write(file, json.dumps(line).encode() + b"\n")
        file.flush()
        files.calls.fsync(file.fileno())


def free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
