"""Who may ask: keys in a file that only its owner can read, compared in constant time, never printed."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_config_path

from dlm_edge import files
from dlm_edge.errors import InputFileError

MIN_CHARACTERS, MAX_KEYS, MAX_FILE_BYTES = 16, 1000, 1 << 20
BEARER = b"bearer "


@dataclass(frozen=True, slots=True)
class Keys:
    """SHA-256 digests only: whoever reads this process's objects in a traceback learns no key."""

    digests: tuple[bytes, ...]

    @classmethod
    def read(cls, path: Path) -> Keys:
        """One key per line, `#` begins a comment. Raises E-FILE."""
        return cls.of(read_keys(path))

    @classmethod
    def of(cls, keys: list[str]) -> Keys:
        return cls(tuple(digest(key.encode("ascii")) for key in keys))

    def find(self, authorization: list[bytes]) -> int | None:
        """Which key the Authorization headers name, None for none of them. Takes the same time for all wrong keys."""
        if len(authorization) != 1 or not authorization[0].lower().startswith(BEARER):
            return None
        given, found = digest(authorization[0][len(BEARER) :]), None
        for index, known in enumerate(self.digests):
            if hmac.compare_digest(given, known):
                found = index
        return found


def digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def default_key_path() -> Path:
    return user_config_path("dlm-edge", appauthor=False) / "server-key"


def make_key_file(path: Path) -> bool:
    """Write a new random key to `path` unless it exists; whether it was written. Of two first starts one writes."""
    if path.exists():
        return False
    files.make_folder(path.parent)
    temporary = path.with_name(f"{files.TEMPORARY}{secrets.token_hex(6)}")
    with files.io_errors(path, "cannot write"):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as file:
                file.write(f"dlm-{secrets.token_urlsafe(32)}\n".encode())
                file.flush()
                files.calls.fsync(file.fileno())
            os.link(temporary, path)  # unlike a rename it does not replace the key of another start
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
    files.sync_folder(path.parent)
    return True


def read_keys(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputFileError("E-FILE", f"{path}: {error.strerror}", "give a readable file of keys") from error
    try:
        lines = [line.split("#")[0].strip() for line in data.decode("ascii").splitlines()]
    except UnicodeDecodeError as error:
        raise InputFileError("E-FILE", f"{path} holds other characters than ASCII", "write one key per line") from error
    keys = [line for line in lines if line]
    if not 0 < len(keys) <= MAX_KEYS or len(data) > MAX_FILE_BYTES:
        raise InputFileError("E-FILE", f"{path} holds {len(keys)} keys", f"write 1 to {MAX_KEYS}, one per line")
    for number, key in enumerate(keys, 1):
        if len(key) < MIN_CHARACTERS or not key.isprintable() or " " in key:
            message = f"key {number} of {path} is shorter than {MIN_CHARACTERS} characters, or holds a space"
            raise InputFileError("E-FILE", message, "delete the file, and the next start makes a random key")
    return keys


def is_private(path: Path) -> bool:
    """Whether nobody but the owner can read it; always on Windows, where the profile's folder is private."""
    return os.name == "nt" or not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
