"""The importance matrix of llama.cpp in its legacy binary form: mean squared inputs of every linear layer.

    int32 entries
    entry: int32 length, name, int32 calls, int32 values, float32 [values] = mean square * calls
    int32 chunks, int32 length, name of the dataset

Little-endian; entries in name order. `llama-quantize --imatrix FILE` divides the values by the calls.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlm_edge import files
from dlm_edge.checkpoint.regular_file import RegularFile
from dlm_edge.errors import InputFileError, JobError

MAX_ENTRIES, MAX_NAME, MAX_VALUES = 1 << 20, 4096, 1 << 24
GGUF_NAMES = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


@dataclass(frozen=True, slots=True)
class Imatrix:
    """`mean_squares` float32 [in] by GGUF tensor name; `chunks` of text from `dataset` were seen."""

    mean_squares: dict[str, NDArray[np.float32]]
    chunks: int
    dataset: str


def gguf_name(role: str) -> str:
    """`layers.3.o.weight` -> `blk.3.attn_output.weight`; only the linear layers have one."""
    _, layer, part, leaf = role.split(".")
    return f"blk.{layer}.{GGUF_NAMES[part]}.{leaf}"


def write_imatrix(
    path: Path, statistics: Mapping[str, tuple[NDArray[np.float32], float]], *, chunks: int = 1, dataset: str = ""
) -> None:
    """`statistics`: GGUF tensor name -> (sum of squared inputs float32 [in], tokens it was summed over).

    Token weights may make the number of tokens a fraction. Raises E-QUANT for sums that cannot be.
    """
    if chunks < 1:
        raise JobError("E-QUANT", f"an imatrix of {chunks} chunks", "at least one is needed")
    with files.replacing(path) as file:
        files.calls.write(file, struct.pack("<i", len(statistics)))
        for name, (sum_of_squares, n_tokens) in sorted(statistics.items()):
            if n_tokens <= 0 or not np.isfinite(sum_of_squares).all() or (sum_of_squares < 0).any():
                raise JobError("E-QUANT", f"{name}: its inputs have no finite mean square", "calibrate again")
            values = (sum_of_squares.astype(np.float64) / n_tokens * chunks).astype("<f4")
            encoded = name.encode()
            head = struct.pack("<i", len(encoded)) + encoded + struct.pack("<ii", chunks, len(values))
            files.calls.write(file, head + values.tobytes())
        text = dataset.encode()
        files.calls.write(file, struct.pack("<ii", chunks, len(text)) + text)


def read_imatrix(path: Path) -> Imatrix:
    """Raises E-FILE, or E-TENSOR when the file is no legacy imatrix or is cut off."""
    reader = _Reader(RegularFile.open(path))
    found: dict[str, NDArray[np.float32]] = {}
    for _ in range(reader.count("entries", MAX_ENTRIES)):
        name = reader.text(reader.count("bytes in a name", MAX_NAME))
        calls, n_values = reader.count("calls", 2**31 - 1), reader.count("values", MAX_VALUES)
        values = np.frombuffer(reader.take(4 * n_values), "<f4").astype(np.float32)
        if name in found or not np.isfinite(values).all():
            raise reader.bad(
                f"{name!r} appears twice" if name in found else f"{name!r} holds values that are not finite"
            )
        found[name] = values / np.float32(calls) if calls else values
    chunks = reader.count("chunks", 2**31 - 1)
    dataset = reader.text(reader.count("bytes in a name", MAX_NAME))
    if reader.at != reader.file.size:
        raise reader.bad(f"{reader.file.size - reader.at} bytes follow the last field")
    return Imatrix(found, chunks, dataset)


class _Reader:
    def __init__(self, file: RegularFile) -> None:
        self.file, self.at = file, 0

    def take(self, length: int) -> bytes:
        if self.at + length > self.file.size:
            raise self.bad(f"it ends at byte {self.file.size}, {self.at + length} are needed")
        self.at += length
        return self.file.read(self.at - length, length)

    def count(self, what: str, limit: int) -> int:
        value: int = struct.unpack("<i", self.take(4))[0]
        if not 0 <= value <= limit:
            raise self.bad(f"it claims {value} {what}")
        return value

    def text(self, length: int) -> str:
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise self.bad("a name is not UTF-8") from error

    def bad(self, what: str) -> InputFileError:
        return InputFileError("E-TENSOR", f"{self.file.path} is not a legacy imatrix file: {what}", "make it again")
