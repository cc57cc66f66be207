"""The header of an untrusted safetensors file, checked before a byte of tensor data is read.

The format: 8 bytes little-endian header length, a JSON object `name -> {dtype, shape, data_offsets}`, then
the tensors back to back. The safetensors library accepts duplicate names and names such as `../x`; this
reader does not. Integers are Python's, so no product of dimensions can overflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm_edge.checkpoint.regular_file import RegularFile
from dlm_edge.checkpoint.strict_json import DuplicateKey, parse_json, shorten
from dlm_edge.errors import InputFileError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_NAME_LENGTH = 512
MAX_RANK = 8
ITEM_BYTES = dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1)
ITEM_BYTES |= dict.fromkeys(("U16", "I16", "F16", "BF16"), 2)
ITEM_BYTES |= dict.fromkeys(("U32", "I32", "F32"), 4)
ITEM_BYTES |= dict.fromkeys(("U64", "I64", "F64"), 8)
AGAIN = "download the file again"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: `begin` and `end` are offsets in the file, not in its data part."""

    file: RegularFile
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of the file, in the order of its data. Raises InputFileError with an E-ST-..., E-PICKLE or E-FILE."""
    file = RegularFile.open(path)
    start = file.read(0, min(64, file.size))
    if start[8:9] != b"{":  # a right header may begin with any 8 bytes, but only this follows them
        _sniff(path, start)
    if file.size < 8:
        raise _bad(path, "HEADER", f"the file has {file.size} bytes, less than a header; incomplete download?")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise _bad(path, "HEADER", f"the header claims {length} bytes, the format allows {MAX_HEADER_BYTES}")
    if 8 + length > file.size:
        raise _bad(path, "HEADER", f"the header claims {length} bytes, the file has {file.size}")
    header = _parse(path, file.read(8, length))
    _check_metadata(path, header.pop("__metadata__", None))
    entries = [_entry(file, 8 + length, name, value) for name, value in header.items()]
    _check_layout(file, 8 + length, entries)
    return {entry.name: entry for entry in sorted(entries, key=lambda e: e.begin)}


def _sniff(path: Path, start: bytes) -> None:
    """Name the well-known things that lie under a weight file's name instead of one."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"version https://git-lfs", b"# xet version")):
        raise InputFileError(
            "E-ST-POINTER",
            f"{path} is a download pointer, not the weights",
            "fetch the file itself, e.g. with `git lfs pull` or `hf download`",
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise InputFileError(
            "E-ST-HTML", f"{path} is a web page, not the weights", "download it again, logged in if need be"
        )
    pickled = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if pickled or start.startswith((b"PK\x03\x04", b"\x93NUMPY")):
        raise InputFileError(
            "E-PICKLE",
            f"{path} is a pickled or zipped checkpoint under the name of a safetensors file",
            "convert it to safetensors on a machine where you trust it; dlm-edge never opens pickles",
        )


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        header = parse_json(data)
    except DuplicateKey as error:
        raise _bad(path, "NAME", str(error)) from error
    except ValueError as error:
        raise _bad(path, "HEADER", str(error)) from error
    if not isinstance(header, dict):
        raise _bad(path, "HEADER", f"it is a {type(header).__name__}, not an object")
    return header


def _check_metadata(path: Path, metadata: object) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad(path, "HEADER", "__metadata__ is not an object of texts")


def _entry(file: RegularFile, data_start: int, name: str, value: Any) -> TensorEntry:
    path = file.path
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        raise _bad(
            path, "NAME", f"tensor name {shorten(name)} has {len(name)} characters, the limit is {MAX_NAME_LENGTH}"
        )
    if not (name.isascii() and name.isprintable()) or "/" in name or "\\" in name or ".." in name:
        raise _bad(path, "NAME", f"tensor name {shorten(name)} holds control characters or parts of a path")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _bad(path, "HEADER", f"{name} does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _bad(path, "DTYPE", f"{name} has type {shorten(str(dtype))}; known: {', '.join(ITEM_BYTES)}")
    if not (_are_integers(offsets) and len(offsets) == 2):
        raise _bad(path, "LAYOUT", f"{name} has data_offsets {shorten(str(offsets))}")
    n_bytes = _size(path, name, dtype, shape)
    begin, end = offsets
    if end - begin != n_bytes:
        raise _bad(path, "LAYOUT", f"{name}: shape {shape} in {dtype} needs {n_bytes} bytes, it has {end - begin}")
    if not 0 <= begin <= end <= file.size - data_start:
        raise _bad(
            path, "LAYOUT", f"{name} ends at byte {end} of the data, which has {file.size - data_start}; cut off?"
        )
    return TensorEntry(file, name, dtype, tuple(shape), data_start + begin, data_start + end)


def _size(path: Path, name: str, dtype: str, shape: Any) -> int:
    if not _are_integers(shape):
        raise _bad(path, "SHAPE", f"{name} has shape {shorten(str(shape))}")
    if len(shape) > MAX_RANK or any(n <= 0 for n in shape):
        raise _bad(
            path, "SHAPE", f"{name} has shape {shorten(str(shape))}; up to {MAX_RANK} positive dimensions are possible"
        )
    n_bytes: int = math.prod(shape) * ITEM_BYTES[dtype]
    if n_bytes >= 2**63:
        raise _bad(path, "SHAPE", f"{name} has shape {shape}, more than any file holds")
    return n_bytes


def _check_layout(file: RegularFile, data_start: int, entries: list[TensorEntry]) -> None:
    """The tensors must cover the data without hole or overlap, from its first byte to its last."""
    at = data_start
    for entry in sorted(entries, key=lambda e: (e.begin, e.end)):
        if entry.begin != at:
            what = "overlaps the tensor before it by" if entry.begin < at else "leaves a hole before it of"
            raise _bad(file.path, "LAYOUT", f"{entry.name} {what} {abs(at - entry.begin)} bytes")
        at = entry.end
    if at != file.size:
        raise _bad(file.path, "LAYOUT", f"{file.size - at} bytes follow the last tensor")


def _are_integers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in value)


def _bad(path: Path, kind: str, what: str) -> InputFileError:
    return InputFileError(f"E-ST-{kind}", f"{path}: {what}", AGAIN)
