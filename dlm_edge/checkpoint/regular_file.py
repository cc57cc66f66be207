"""Bounded reads from an untrusted file: only regular files, never mapped, and noticed when they change."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from dlm_edge.errors import InputFileError

MAX_FILE_BYTES = 1 << 38  # 256 GiB: far above any shard, below what a sparse file can pretend


@dataclass(frozen=True, slots=True)
class RegularFile:
    """A regular file (or a link to one, as in the hub cache) as it was when first seen."""

    path: Path
    size: int
    modified_ns: int

    @classmethod
    def open(cls, path: Path) -> RegularFile:
        """Raises E-FILE unless `path` is a readable regular file of a plausible size."""
        descriptor = _open(path)
        try:
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if status.st_size > MAX_FILE_BYTES:
            raise InputFileError(
                "E-FILE", f"{path} has {status.st_size} bytes, the limit is {MAX_FILE_BYTES}", "check what it is"
            )
        return cls(path, status.st_size, status.st_mtime_ns)

    def read(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` on. Raises E-CHANGED when the file is no longer the one that was opened."""
        try:
            with os.fdopen(_open(self.path), "rb", buffering=0) as raw:
                self._compare(os.fstat(raw.fileno()))
                raw.seek(offset)
                done = 0
                while done < len(buffer):
                    count = raw.readinto(buffer[done:])
                    if not count:
                        raise self._changed(f"ends {len(buffer) - done} bytes early")
                    done += count
        except OSError as error:
            raise InputFileError("E-FILE", f"{self.path}: {error.strerror}", "check the disk") from error

    def check_unchanged(self) -> None:
        try:
            self._compare(self.path.stat())
        except OSError as error:
            raise self._changed(f"is gone ({error.strerror})") from error

    def _compare(self, status: os.stat_result) -> None:
        if status.st_size != self.size:
            raise self._changed(f"had {self.size} bytes and has {status.st_size}")
        if status.st_mtime_ns != self.modified_ns:
            raise self._changed("was written to")

    def _changed(self, what: str) -> InputFileError:
        return InputFileError(
            "E-CHANGED", f"{self.path} changed while it was in use: it {what}", "run again when nothing writes to it"
        )


def _open(path: Path) -> int:
    # Without O_NONBLOCK, opening a FIFO would wait for a writer for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputFileError(
            "E-FILE", f"{path} cannot be opened: {reason}", "check the path and its permissions"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputFileError("E-FILE", f"{path} is not a regular file", "replace it with the file itself")
    return descriptor
