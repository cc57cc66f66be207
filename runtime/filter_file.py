"""filter.safetensors of a bundle: the four arrays of the filter, read with suspicion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dlm_edge.errors import InputFileError
from dlm_edge.runtime.learned_filter import NAMES, Filter

FORMAT = "dlm-edge filter 1"
MAX_FILE_BYTES = 16 << 20


def filter_bytes(made: Filter) -> bytes:
    """The file of a filter; equal filters make equal files."""
    return save({name: np.ascontiguousarray(array) for name, array in made.arrays.items()}, {"format": FORMAT})


def read_filter(path: Path, block_length: int) -> Filter:
    """Raises E-MANIFEST for a file that is no filter for blocks of this length."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise refusal(path, f"larger than {MAX_FILE_BYTES} bytes")
        with safe_open(path, framework="numpy") as file:
            names, found = set(file.keys()), file.metadata() or {}
            if found.get("format") != FORMAT or names != set(NAMES):
                raise refusal(path, "not a filter of this version")
            slices = {name: file.get_slice(name) for name in NAMES}
            n_hidden = max([0, *slices["hidden_bias"].get_shape()])
            shapes = dict(
                zip(
                    NAMES,
                    ((block_length, n_hidden), (n_hidden,), (n_hidden, block_length), (block_length,)),
                    strict=True,
                )
            )
            for name, part in slices.items():
                if part.get_dtype() != "F32" or tuple(part.get_shape()) != shapes[name]:
                    told = f"{name} is {part.get_dtype()} {part.get_shape()}, not F32 {list(shapes[name])}"
                    raise refusal(path, f"not one for blocks of {block_length} ({told})")
            arrays = {name: file.get_tensor(name) for name in NAMES}
    except (SafetensorError, OSError) as error:
        raise refusal(path, f"not readable ({error})") from error
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise refusal(path, "one with NaN or infinity")
    return Filter(**arrays)


def refusal(path: Path, what: str) -> InputFileError:
    return InputFileError("E-MANIFEST", f"{path} is {what}", "make it again with `dlm-edge train-filter`")
