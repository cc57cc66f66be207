"""One writer for each output: a lock that the kernel drops with its process, and the number of who holds it."""

from __future__ import annotations

import getpass
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dlm_edge import files
from dlm_edge.errors import JobError


@contextmanager
def only_writer(out: Path, hint: str) -> Iterator[None]:
    """Hold the lock of `out`. Raises E-BUSY, with the hint, when another process does."""
    lock = FileLock(lock_path(out))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise JobError("E-BUSY", f"another run{named_holder(lock_path(out))} is writing {out}", hint) from None
    try:
        note_holder(lock_path(out))
        yield
    finally:
        holder_path(lock_path(out)).unlink(missing_ok=True)
        lock.release()


def lock_path(out: Path) -> Path:
    """Outside the output's folder, so that nothing is left there; the kernel drops the lock with the process."""
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()  # a container may have no name for its user
    folder = Path(tempfile.gettempdir()) / f"dlm-edge-locks-{user}"
    with files.io_errors(folder, "cannot create"):
        folder.mkdir(exist_ok=True)
    return folder / (hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:24] + ".lock")


def holder_path(lock: Path) -> Path:
    """The lock itself cannot hold a word: whoever asks for it may empty it."""
    return lock.with_suffix(".pid")


def note_holder(lock: Path) -> None:
    with files.io_errors(holder_path(lock), "cannot write"):
        holder_path(lock).write_text(str(os.getpid()))


def named_holder(lock: Path) -> str:
    """As in " (process 1234)"; nothing when the holder has not yet said who it is."""
    try:
        return f" (process {int(holder_path(lock).read_text())})"
    except (OSError, ValueError):
        return ""
