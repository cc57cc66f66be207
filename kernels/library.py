"""The compiled operator library: where it is, whether it fits, and registering it with ONNX Runtime.

Without the library nothing is lost but speed: every model carries the operators as functions of standard ones.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dlm_edge.errors import EnvironmentProblem

DOMAIN = "dlm_edge"
OPERATOR_VERSION = 2
FILE_NAME = "libdlm_edge_ops.so"


class SessionOptions(Protocol):
    """The one method needed of `onnxruntime.SessionOptions`."""

    def register_custom_ops_library(self, path: str, /) -> None: ...


def library_path() -> Path | None:
    """The library beside this package, or None where it was not built."""
    path = Path(__file__).resolve().parent / FILE_NAME
    return path if path.is_file() else None


def register(session_options: SessionOptions) -> bool:
    """Add the native operators to a session; False where there is no library and the function bodies run.

    Only for sessions on the CPU with float32 models: the kernels know no other type, so ONNX Runtime refuses a
    float16 model once they are registered, and a GPU session would copy its tensors to the CPU for them.

    Raises EnvironmentProblem when the library cannot be loaded or belongs to another version of this package.
    """
    path = library_path()
    if path is None:
        return False
    _load(path)
    session_options.register_custom_ops_library(str(path))
    return True


def simd() -> str | None:
    """The variant in use ("amx", "avx512_vnni", "avx512", "avx_vnni", "avx2" or "portable"), or None without a library.

    "amx" and "avx512_vnni" compute attention over int8 and int4 caches in integers, to about 2e-4 in a score (see
    csrc/fixed_attention.h); in the other variants it is float32. QLinear gives the same bits in all of them.
    """
    path = library_path()
    if path is None:
        return None
    name: bytes = _load(path).dlm_edge_simd()
    return name.decode()


def set_simd(name: str | None) -> bool:
    """Force a variant for the whole process (None: the best again). False where it is not available.

    For tests and measurements. Calls that are under way keep the variant they started with.
    """
    path = library_path()
    return path is not None and bool(_load(path).dlm_edge_set_simd(name.encode() if name else None))


def score_rows(
    rows: NDArray[np.uintp],
    vocab_size: int,
    forbidden: NDArray[np.int64],
    ids: NDArray[np.int64],
    columns: NDArray[np.float64],
) -> bool:
    """The call behind score_rows/fast.py; False without a library, and then nothing is written.

    rows [R] addresses of float32 [vocab_size]; columns [4, R] largest, top1_prob, top2_prob, entropy. All are contiguous
    and stay the caller's.
    """
    library = _in_use()
    if library is None:
        return False
    pointers = [array.ctypes.data for array in (rows, forbidden, ids, columns)]
    library.dlm_edge_score_rows(
        len(rows), vocab_size, pointers[0], len(forbidden), pointers[1], pointers[2], pointers[3]
    )
    return True


@cache
def _in_use() -> ctypes.CDLL | None:
    """Looked for once: looking takes longer than a row of a small vocabulary."""
    path = library_path()
    return None if path is None else _load(path)


@cache
def _load(path: Path) -> ctypes.CDLL:
    hint = "reinstall dlm-edge, or delete the file to run on standard operators"
    try:
        library = ctypes.CDLL(str(path))
        library.dlm_edge_simd.restype = ctypes.c_char_p
        library.dlm_edge_set_simd.argtypes = [ctypes.c_char_p]
        count, pointer = ctypes.c_int64, ctypes.c_void_p
        library.dlm_edge_score_rows.argtypes = [count, count, pointer, count, pointer, pointer, pointer]
        library.dlm_edge_score_rows.restype = None
        version = library.dlm_edge_operator_version()
    except (OSError, AttributeError) as error:
        raise EnvironmentProblem("E-NATIVE", f"{path} cannot be loaded: {error}", hint) from error
    if version != OPERATOR_VERSION:
        message = f"{path} has operator version {version}, this package needs {OPERATOR_VERSION}"
        raise EnvironmentProblem("E-NATIVE", message, hint)
    return library
