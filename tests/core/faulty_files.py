"""A stand-in for the file calls whose k-th call fails, or dies, or tears what it writes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, BinaryIO

from dlm_edge.files import FileCalls


class Killed(BaseException):
    """The process ends here: nothing after it runs except what unwinds, and that does not touch the disk again."""


class FaultyCalls(FileCalls):
    """Counts calls, all or those whose name is in `only`; number `fail_at` (from 1) raises. `kill`: it and every later
    call raise Killed. Nothing is really synced: a test process does not lose its page cache."""

    def __init__(
        self,
        fail_at: int | None = None,
        *,
        kill: bool = False,
        error: int = errno.ENOSPC,
        only: Collection[str] | None = None,
    ) -> None:
        self.fail_at, self.kill, self.error, self.only = fail_at, kill, error, only
        self.count, self.dead = 0, False

    def step(self, name: str, before: Callable[[], Any] | None = None) -> None:
        counted = self.only is None or name in self.only
        self.count += counted
        if self.dead or (counted and self.count == self.fail_at):
            if before is not None and not self.dead:
                before()
            if self.kill:
                self.dead = True
                raise Killed
            raise OSError(self.error, os.strerror(self.error))

    def open(self, path: Path, mode: str) -> BinaryIO:
        self.step("open")
        return super().open(path, mode)

    def write(self, file: BinaryIO, data: bytes | memoryview) -> int:
        def tear() -> None:
            file.write(data[: len(data) // 2])
            file.flush()

        self.step("write", tear)
        return super().write(file, data)

    def fsync(self, descriptor: int) -> None:
        self.step("fsync")

    def replace(self, source: Path, target: Path) -> None:
        self.step("replace")
        super().replace(source, target)

    def mkdir(self, path: Path) -> None:
        self.step("mkdir")
        super().mkdir(path)

    def unlink(self, path: Path) -> None:
        self.step("unlink")
        super().unlink(path)

    def rmtree(self, path: Path) -> None:
        self.step("rmtree", lambda: next((p.unlink() for p in sorted(path.iterdir()) if p.is_file()), None))
        super().rmtree(path)
