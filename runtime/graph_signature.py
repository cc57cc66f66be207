"""The inputs of an exported step graph, against what the runtime will bind: refused before the first run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from numpy.typing import NDArray

from dlm_edge.errors import InputFileError

TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "uint8": "tensor(uint8)", "int8": "tensor(int8)"}


def check_signature(session: Any, names: Collection[str], arrays: Mapping[str, NDArray[Any]]) -> None:
    """`arrays`: inputs whose memory there is already, of the right type and dimensions. Raises E-MANIFEST."""
    given = session.get_inputs()
    odd = sorted({meta.name for meta in given} ^ set(names))
    odd = odd or [meta.name for meta in given if meta.name in arrays and is_other(meta, arrays[meta.name])]
    if odd:
        raise InputFileError(
            "E-MANIFEST", f"the graph's inputs differ from the manifest's: {', '.join(odd[:5])}", "export it again"
        )


def is_other(meta: Any, array: NDArray[Any]) -> bool:
    """Whether the array has another type, or other fixed dimensions, than the graph's input."""
    sizes = [size if isinstance(size, int) else given for size, given in zip(meta.shape, array.shape, strict=False)]
    return meta.type != TYPES[array.dtype.name] or len(meta.shape) != array.ndim or tuple(sizes) != array.shape


def takes_copies(session: Any) -> bool:
    """Whether the first dimension of input_ids is free, which depends on layout and target: export/graph.py."""
    shapes = {meta.name: meta.shape for meta in session.get_inputs()}
    return not isinstance(shapes["input_ids"][0], int)
