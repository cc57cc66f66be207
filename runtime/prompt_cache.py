"""Keys and values of a prompt in a file, so that a later process need not compute them again.

A safetensors file: `ids`, and each layer's caches up to the positions kept. It fits one bundle only, named by the hash
of the bundle's graph data; nothing in it is executed, and every name, shape and dtype is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dlm_edge import files
from dlm_edge.errors import InputFileError, UsageProblem
from dlm_edge.runtime.layouts import Layout
from dlm_edge.runtime.ort_step_model import OrtStepModel

FORMAT = "dlm-edge prompt cache 1"
NAMES = {"float32": "F32", "float16": "F16", "uint8": "U8"}  # of element types, in safetensors


def save_prompt_cache(path: Path, model: OrtStepModel, bundle_hash: str) -> int:
    """Write what `model` keeps; returns the number of positions. E-STATE if that is none."""
    memory = model.memory
    n = memory.layout.cursor
    if not n or len(memory.ids) != n:
        message = "no prompt is kept: nothing was generated yet, or the model's attention allows no reuse"
        raise UsageProblem("E-STATE", message, "generate with this engine first")
    model.fetch_caches()
    tensors: dict[str, NDArray[np.generic]] = {"ids": memory.ids}
    tensors |= {name: np.ascontiguousarray(view) for name, view in views(memory.layout).items()}
    files.write_file(path, save(tensors, {"format": FORMAT, "bundle": bundle_hash}))
    return n


def load_prompt_cache(
    path: Path, model: OrtStepModel, bundle_hash: str, admit: Callable[[int], None] = lambda positions: None
) -> int:
    """Put a saved prompt into the caches; returns its positions. E-CACHE for a file that is not one of this bundle.

    Page bounds are not in it: attention policies that need them compute the prompt again.
    """
    hint = "it is made by save_prompt_cache with the same bundle; delete it to begin anew"
    try:
        with safe_open(path, framework="numpy") as file:
            found, names = file.metadata() or {}, set(file.keys())
            if found.get("format") != FORMAT or found.get("bundle") != bundle_hash or "ids" not in names:
                raise InputFileError("E-CACHE", f"{path} belongs to another bundle or version", hint)
            shape, dtype = header(file, {"ids"})["ids"]
            if dtype != "I64" or len(shape) != 1 or not 0 < shape[0] <= model.spec.max_positions:
                raise InputFileError("E-CACHE", f"{path} has no list of token ids", hint)
            ids = file.get_tensor("ids")
            if ids.min() < 0 or ids.max() >= model.spec.vocab_size:
                raise InputFileError("E-CACHE", f"{path} has ids that are no tokens of this model", hint)
            admit(len(ids))
            model.discard()
            model.reset(len(ids))
            model.memory.layout.restore(len(ids))
            wanted = views(model.memory.layout)
            if header(file, names - {"ids"}) != {n: (v.shape, NAMES[v.dtype.name]) for n, v in wanted.items()}:
                raise InputFileError("E-CACHE", f"{path} holds other tensors than this bundle's caches", hint)
            for name, view in wanted.items():
                tensor = file.get_tensor(name)
                if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
                    raise InputFileError("E-CACHE", f"{path}: {name} has NaN or infinity", hint)
                view[...] = tensor
            model.send_caches()
    except BaseException as error:
        model.discard()  # it may hold a part of the file
        if isinstance(error, (SafetensorError, OSError)):
            raise InputFileError("E-CACHE", f"{path}: {error}", hint) from error
        raise
    model.memory.ids = ids
    return len(ids)


def header(file: Any, names: set[str]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of the named tensors, as the file's header has them."""
    slices = {name: file.get_slice(name) for name in names}
    return {name: (tuple(found.get_shape()), found.get_dtype()) for name, found in slices.items()}


def views(layout: Layout) -> dict[str, NDArray[np.generic]]:
    """What counts of every layer's arrays at the present cursor."""
    return {f"{name}.{i}": view for i in range(layout.n_layers) for name, view in layout.state(i).items()}
