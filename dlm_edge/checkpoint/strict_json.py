"""JSON of untrusted files: bounded in size and depth, without duplicate keys, NaN, or numbers beyond float."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from dlm_edge.checkpoint.regular_file import RegularFile
from dlm_edge.errors import InputFileError

MAX_CONFIG_BYTES = 4 << 20
MAX_DEPTH = 32


class DuplicateKey(ValueError):
    def __init__(self, key: str) -> None:
        super().__init__(f"key {shorten(key)} appears twice")
        self.key = key


def read_json_object(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The object in `path`. Raises E-FILE (not a regular file) or E-JSON (everything that is wrong inside)."""
    file = RegularFile.open(path)
    if file.size > max_bytes:
        raise InputFileError("E-JSON", f"{path} has {file.size} bytes, the limit is {max_bytes}", "check what it is")
    try:
        value = parse_json(file.read(0, file.size))
    except ValueError as error:
        raise InputFileError("E-JSON", f"{path}: {error}", "download the file again, or correct it") from error
    if not isinstance(value, dict):
        raise InputFileError("E-JSON", f"{path} holds a {type(value).__name__}, not an object", "check what it is")
    return value


def parse_json(data: bytes) -> Any:
    """Parse strictly. Raises ValueError with a sentence, DuplicateKey for a key that appears twice."""
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from error
    _check_depth(value)
    return value


def shorten(text: str) -> str:
    """`text` quoted for a message: escaped, at most about 80 characters."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen = set[str]()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKey(key)
            seen.add(key)
    return result


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
