"""The only way this project writes files: complete under the final name, or not there at all.

Every call to the operating system goes through `calls`, so that a test can make the k-th one fail.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from dlm_edge.errors import ResourceError

TEMPORARY = ".dlm-edge-tmp-"


class FileCalls:
    """The calls that can fail on a real disk. Fault injection replaces the one instance, `calls`."""

    def open(self, path: Path, mode: str) -> BinaryIO:
        return path.open(mode)  # type: ignore[return-value]

    def write(self, file: BinaryIO, data: bytes | memoryview) -> int:
        return file.write(data)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def mkdir(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def rmtree(self, path: Path) -> None:
        shutil.rmtree(path)


calls = FileCalls()


@contextmanager
def io_errors(path: Path, what: str) -> Iterator[None]:
    """Turn an OSError of the disk into E-IO with the file and the next step."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space and run again" if full else "check the folder's permissions and run again"
        raise ResourceError("E-IO", f"{what} {path}: {error.strerror or error}", hint) from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends well, and leaves nothing when it does not."""
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}")
    with io_errors(path, "cannot write"):
        try:
            with calls.open(temporary, "xb") as file:
                yield file
                file.flush()
                calls.fsync(file.fileno())
            calls.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):  # the first error is the one to report
                temporary.unlink(missing_ok=True)
            raise


def write_file(path: Path, data: bytes | str) -> None:
    with replacing(path) as file:
        calls.write(file, data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def make_folder(path: Path) -> None:
    with io_errors(path, "cannot create"):
        calls.mkdir(path)


def sync_folder(path: Path) -> None:
    """Make a rename in `path` durable; Windows has no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        calls.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of ours that a killed run left behind."""
    for path in folder.glob(TEMPORARY + "*"):
        calls.unlink(path)


def free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
