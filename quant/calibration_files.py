"""Calibration data of the user's: .txt, .jsonl and .parquet to entries, with a size limit and never an object.

An entry is a dict with "text", or "prompt" and "answer", or "messages"; `where` names it in messages.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlm_edge.errors import EnvironmentProblem, InputFileError

MAX_FILE_BYTES = 64 << 20
MAX_DECODED_BYTES = 256 << 20  # of a parquet file, which is compressed
SAFE_PYARROW = (14, 0, 1)  # older ones unpickle what a file's schema names (CVE-2023-47248)
FORMATS = (".txt", ".jsonl", ".parquet")
COLUMNS = ("text", "prompt", "answer", "messages")
TOO_MUCH = "a few megabytes of varied text are plenty: cut it"

Entry = tuple[str, Any]  # where, value


def read_entries(path: Path) -> Iterator[Entry]:
    """Raises E-CALIB naming file and line, E-DEPENDENCY without pyarrow."""
    if path.suffix not in FORMATS:
        known = ", ".join(FORMATS)
        raise InputFileError("E-CALIB", f"{path}: only {known} files can be read", "convert it to one of them")
    check_size(path)
    if path.suffix == ".txt":
        yield str(path), {"text": read_text(path)}
    elif path.suffix == ".jsonl":
        yield from json_lines(path)
    else:
        yield from parquet_rows(path)


def check_size(path: Path) -> None:
    hint = "give a readable file"
    try:
        size, is_file = path.stat().st_size, path.is_file()
    except OSError as error:
        raise InputFileError("E-CALIB", f"cannot read {path}: {error.strerror}", hint) from error
    if not is_file:
        raise InputFileError("E-CALIB", f"cannot read {path}: not a regular file", hint)
    if size > MAX_FILE_BYTES:
        raise InputFileError("E-CALIB", f"{path} has {size} bytes, more than {MAX_FILE_BYTES}", TOO_MUCH)


def read_text(path: Path) -> str:
    hint = "give a readable text file in UTF-8"
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputFileError("E-CALIB", f"{path} is not UTF-8 (byte {error.start})", hint) from error
    except OSError as error:
        raise InputFileError("E-CALIB", f"cannot read {path}: {error.strerror}", hint) from error
    if not text.strip():
        raise InputFileError("E-CALIB", f"{path} is empty", hint)
    return text


def json_lines(path: Path) -> Iterator[Entry]:
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, json.loads(line)
        except RecursionError as error:
            raise InputFileError("E-CALIB", f"{where} is nested too deeply", "one JSON object per line") from error
        except ValueError as error:
            raise InputFileError("E-CALIB", f"{where} is not JSON ({error})", "one JSON object per line") from error


def parquet_rows(path: Path) -> Iterator[Entry]:
    """Rows of the columns that are known; null values count as missing."""
    parquet = import_parquet()
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in COLUMNS]
            if not columns:
                found = ", ".join(file.schema_arrow.names[:8])
                hint = 'it needs a column "text", or "prompt" and "answer", or "messages"'
                raise InputFileError("E-CALIB", f"{path} has only the columns {found}", hint)
            groups = range(file.metadata.num_row_groups)
            declared = sum(file.metadata.row_group(i).total_byte_size for i in groups)
            yield from decoded_rows(path, file, columns, declared)
    except InputFileError:
        raise
    except Exception as error:  # pyarrow has several unrelated classes
        raise InputFileError("E-CALIB", f"{path} cannot be read as parquet ({error})", "write it again") from error


def decoded_rows(path: Path, file: Any, columns: list[str], declared: int) -> Iterator[Entry]:
    decoded, number = declared, 0
    if declared <= MAX_DECODED_BYTES:
        decoded = 0
        for part in file.iter_batches(batch_size=256, columns=columns):
            decoded += part.nbytes
            if decoded > MAX_DECODED_BYTES:
                break
            for row in part.to_pylist():
                number += 1
                yield f"{path}, row {number}", {key: value for key, value in row.items() if value is not None}
    if decoded > MAX_DECODED_BYTES:
        raise InputFileError("E-CALIB", f"{path} unpacks to more than {MAX_DECODED_BYTES} bytes", TOO_MUCH)


def import_parquet() -> Any:
    try:
        pyarrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise EnvironmentProblem("E-DEPENDENCY", "parquet files need pyarrow", "pip install pyarrow") from error
    version = tuple(int(part) for part in pyarrow.__version__.split(".")[:3] if part.isdigit())
    if version < SAFE_PYARROW:
        message = f"pyarrow {pyarrow.__version__} can run code from a parquet file"
        raise EnvironmentProblem("E-DEPENDENCY", message, "pip install --upgrade pyarrow")
    return parquet
