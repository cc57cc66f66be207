"""A stand-in for the file calls whose k-th call fails, or dies, or tears what it writes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from dlm_edge.files import FileCalls


class Killed(BaseException):
    """The process ends here: nothing after it runs except what unwinds, and that does not touch the disk again."""


class FaultyCalls(FileCalls):
    """Counts every call; number `fail_at` (from 1) raises. `kill`: it and all later ones raise Killed."""

    def __init__(self, fail_at: int | None = None, *, kill: bool = False, error: int = errno.ENOSPC) -> None:
        self.fail_at, self.kill, self.error, self.count = fail_at, kill, error, 0
        self.dead = False

    def step(self, before: Callable[[], Any] | None = None) -> None:
        self.count += 1
        if self.dead or self.count == self.fail_at:
            if before is not None and not self.dead:
                before()
            if self.kill:
                self.dead = True
                raise Killed
            raise OSError(self.error, os.strerror(self.error))

    def open(self, path: Path, mode: str) -> BinaryIO:
        self.step()
        return super().open(path, mode)

    def write(self, file: BinaryIO, data: bytes | memoryview) -> int:
        def tear() -> None:
            file.write(data[: len(data) // 2])
            file.flush()

        self.step(tear)
        return super().write(file, data)

    def fsync(self, descriptor: int) -> None:
        self.step()
        super().fsync(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        self.step()
        super().replace(source, target)

    def mkdir(self, path: Path) -> None:
        self.step()
        super().mkdir(path)

    def unlink(self, path: Path) -> None:
        self.step()
        super().unlink(path)

    def rmtree(self, path: Path) -> None:
        self.step(lambda: next((p.unlink() for p in sorted(path.iterdir()) if p.is_file()), None))
        super().rmtree(path)
