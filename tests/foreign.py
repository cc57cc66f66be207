"""Tiny checkpoints in foreign formats: `make_foreign(folder, "sdar", write=..., config=...)`, and random weights for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.checkpoint.formats import WRITERS
from dlm_edge.checkpoint.formats.format import LayerToWrite
from dlm_edge.quantized import CodebookTensor, LayerRecord, PackedWeight, QuantizedTensor, dequantize, pack
from tests.tiny import make_checkpoint

WEIGHTS = "model.safetensors"
Tensors = dict[str, np.ndarray]
Write = Callable[[str, PackedWeight], Tensors]


def random_weight(
    shape: tuple[int, int],
    bits: int,
    group_size: int,
    *,
    symmetric: bool = False,
    reordered: bool = False,
    seed: int = 0,
) -> QuantizedTensor:
    """Any codes, zeros from the lowest to the highest, float16 scales."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, shape, dtype=np.uint8)
    groups = (shape[0], shape[1] // group_size)
    zeros = None if symmetric else rng.integers(0, 2**bits, groups, dtype=np.uint8)
    scales = rng.uniform(0.001, 0.02, groups).astype(np.float16).astype(np.float32)
    order = None
    if reordered:  # ascending inside a group: the only order that the index of groups can tell
        order = np.sort(rng.permutation(shape[1]).reshape(-1, group_size), 1).reshape(-1).astype(np.int64)
    return pack(codes, scales, bits, zeros=zeros, order=order)


def random_codebook(shape: tuple[int, int], format: Any, seed: int = 0) -> CodebookTensor:
    rng = np.random.default_rng(seed)
    n_blocks = -(-shape[0] * shape[1] // 64)
    magnitudes = rng.uniform(0.01, 0.3, n_blocks).astype(np.float32)
    return CodebookTensor(rng.integers(0, 256, shape[0] * shape[1] // 2, dtype=np.uint8), magnitudes, shape, format)


def to_write(name: str, weight: QuantizedTensor, scale_dtype: str = "F16") -> LayerToWrite:
    record = LayerRecord(
        name=name,
        bits=weight.bits,
        group_size=weight.group_size,
        method="test",
        zero=weight.zero_kind,
        reordered=weight.order is not None,
    )
    return LayerToWrite(name=name, shape=weight.shape, record=record, scale_dtype=scale_dtype)


def writer_of(format: str) -> Write:
    def write(name: str, weight: PackedWeight) -> Tensors:
        assert isinstance(weight, QuantizedTensor)
        return stored(WRITERS[format].tensors(to_write(name, weight), weight))

    return write


def stored(tensors: Tensors) -> Tensors:
    """Words as the int32 that other tools save."""
    return {name: t.view(np.int32) if t.dtype == np.uint32 else t for name, t in tensors.items()}


def make_foreign(
    folder: Path, family: str, write: Write, config: dict[str, Any], weights: Callable[[tuple[int, int], int], Any]
) -> dict[str, np.ndarray]:
    """A float16 checkpoint whose linear layers are `weights(shape, number)`, stored by `write`.

    Returns what each of them is worth, by role.
    """
    make_checkpoint(folder, family, dtype="float16", n_layers=2)
    plain = open_checkpoint(folder)
    tensors, worth = load_file(folder / WEIGHTS), {}
    for i, role in enumerate(linear_roles(plain)):
        weight = weights(plain.shape(role), i)
        worth[role] = dequantize(weight)
        name = plain.tensor_name(role)
        del tensors[name]
        tensors |= write(name, weight)
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    edit_config(folder, quantization_config=config)
    return worth


def linear_roles(checkpoint: Any) -> list[str]:
    return [r for r in checkpoint.roles() if r.startswith("layers.") and len(checkpoint.shape(r)) == 2]


def edit_config(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def edit_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
