"""Packed weights in a tiny checkpoint, whatever their form: `pack_folder(folder, {"layers.0.up.weight": tensor})`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from safetensors.numpy import load_file, save_file

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.packed_storage import to_parts
from dlm_edge.quantized import (
    CodebookTensor,
    LayerRecord,
    OutlierColumns,
    PackedWeight,
    QuantizationRecord,
    QuantizedTensor,
    ZeroKind,
    middle_code,
    pack,
)

WEIGHTS = "model.safetensors"
Activations = Literal["float", "int8", "exact"]


def pack_folder(folder: Path, packed: dict[str, PackedWeight], activations: Activations = "float") -> Path:
    """Replace weights of a float checkpoint (one file) by packed ones, by role, and write dlm_edge.json."""
    names = open_checkpoint(folder).tensor_name
    tensors, layers = load_file(folder / WEIGHTS), []
    for role, tensor in packed.items():
        del tensors[names(role)]
        tensors |= {names(role) + suffix: np.ascontiguousarray(part) for suffix, part in to_parts(tensor).items()}
        layers.append(record_of(names(role), tensor, activations))
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    record = QuantizationRecord(
        method="test", bits=4, group_size=32, seed=0, calibration={}, source={}, tool_version="0", layers=layers
    )
    (folder / "dlm_edge.json").write_bytes(msgspec.json.encode(record))
    return folder


def record_of(name: str, tensor: PackedWeight, activations: Activations = "float") -> LayerRecord:
    if isinstance(tensor, CodebookTensor):
        return LayerRecord(name=name, bits=4, group_size=64, method="test", format=tensor.format)
    return LayerRecord(
        name=name,
        bits=tensor.bits,
        group_size=tensor.group_size,
        method="test",
        zero=tensor.zero_kind,
        activations=activations,
        outlier_columns=0 if tensor.outliers is None else len(tensor.outliers.columns),
        reordered=tensor.order is not None,
    )


def linear_roles(folder: Path) -> dict[str, tuple[int, ...]]:
    """Role -> shape of every linear of every layer."""
    checkpoint = open_checkpoint(folder)
    linears = ("q", "k", "v", "o", "gate", "up", "down")
    roles = [r for r in checkpoint.roles() if r.split(".")[-2] in linears and r.endswith(".weight")]
    return {role: checkpoint.shape(role) for role in roles}


def pack_linears(folder: Path, make: Callable[[tuple[int, int]], PackedWeight], **options: Any) -> Path:
    """`pack_folder` for all linears of all layers."""
    return pack_folder(folder, {role: make((s[0], s[1])) for role, s in linear_roles(folder).items()}, **options)


def random_tensor(
    shape: tuple[int, int],
    bits: int,
    group_size: int,
    zero: ZeroKind = "symmetric",
    *,
    reordered: bool = False,
    outliers: int = 0,
    seed: int = 0,
) -> QuantizedTensor:
    """Random codes with weights of the size that keeps activations of the size of the inputs."""
    rng, (rows, columns) = np.random.default_rng(seed), shape
    groups = columns // group_size
    codes = rng.integers(0, 2**bits, shape, dtype=np.uint8)
    step = 2.0 * columns**-0.5 / 2**bits
    scales = (step * rng.uniform(0.5, 1.5, (rows, groups)) * rng.choice([-1, 1], (rows, groups))).astype(np.float16)
    zeros: Any = None
    if zero == "integer":
        zeros = rng.integers(0, 2**bits, (rows, groups), dtype=np.uint8)
    elif zero == "float":
        zeros = rng.uniform(0, 2**bits - 1, (rows, groups)).astype(np.float16).astype(np.float32)
    order = rng.permutation(columns) if reordered else None
    split = None
    if outliers:
        chosen = np.sort(rng.choice(columns, outliers, replace=False))
        split = OutlierColumns(chosen, (0.2 * rng.standard_normal((rows, outliers))).astype(np.float16).astype("f4"))
        where = chosen if order is None else np.argsort(order)[chosen]
        flat = np.full(shape, middle_code(bits), np.uint8) if zeros is None else zeros.repeat(group_size, 1)
        codes[:, where] = np.rint(flat[:, where]).astype(np.uint8)
    return pack(codes, scales.astype(np.float32), bits, zeros=zeros, order=order, outliers=split)


def random_codebook(shape: tuple[int, int], form: Literal["nf4", "fp4"], seed: int = 0) -> CodebookTensor:
    rng, size = np.random.default_rng(seed), shape[0] * shape[1]
    magnitudes = (shape[1] ** -0.5 * rng.uniform(1, 2, size // 64)).astype(np.float32)
    return CodebookTensor(rng.integers(0, 256, size // 2, dtype=np.uint8), magnitudes, shape, form)
