"""What a foreign format is: how its config and tensors are read, and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.checkpoint.safetensors_header import TensorEntry
from dlm_edge.errors import InputFileError
from dlm_edge.families.settings import Settings
from dlm_edge.quantized import CodeFormat, LayerRecord, PackedWeight, QuantizedTensor, container_bits, pack

FLOATS = ("F16", "BF16", "F32")
BITS = (2, 3, 4, 8)
MAX_GROUP = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way in which the config says that weights are stored; `group_size` None: one scale per output channel."""

    bits: int
    group_size: int | None
    symmetric: bool
    reordered: bool = False
    codes: CodeFormat = "int"
    detail: str = ""  # what only the format itself distinguishes

    def group(self, columns: int) -> int:
        return columns if self.group_size is None else self.group_size

    def groups(self, columns: int) -> int:
        return -(-columns // self.group(columns))


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of a packed weight: its name, the accepted types, and its shape (None: any one-dimensional)."""

    name: str
    dtypes: tuple[str, ...]
    shape: tuple[int, ...] | None
    optional: bool = False


Parts = dict[str, Part]  # by the role of the part: codes, scales, zeros, ...
Entries = Mapping[str, TensorEntry]  # the same roles; an optional part may be missing


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerToWrite:
    """A linear layer of the checkpoint that is converted; `name` is that of its weight."""

    name: str
    shape: tuple[int, int]
    record: LayerRecord
    scale_dtype: str

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def group_size(self) -> int | None:
        return None if self.record.group_size == self.shape[1] else self.record.group_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """`marker` is the part whose presence says that a weight is packed. `read` gets rows [first, last)."""

    method: str  # quant_method in quantization_config
    read_config: Callable[[Settings], tuple[Variant, ...]]
    marker: str
    parts: Callable[[str, Variant, tuple[int, int]], Parts]
    read: Callable[[str, Variant, tuple[int, int], Entries, int, int], PackedWeight]
    row_step: Callable[[int], int] = lambda columns: 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """`refusal` says in words why a layer cannot be written, and what to use instead; None when it can.

    `config` is the quantization_config for these layers, `plain` are the modules that stay in floating point; it
    raises E-QUANT for layers that do not go together. `tensors` has the types and shapes of `stored_parts`.
    """

    refusal: Callable[[LayerToWrite], tuple[str, str] | None]
    config: Callable[[Sequence[LayerToWrite], Sequence[str]], dict[str, Any]]
    parts: Callable[[LayerToWrite], dict[str, tuple[str, tuple[int, ...]]]]  # tensor name: type, shape
    tensors: Callable[[LayerToWrite, QuantizedTensor], dict[str, NDArray[Any]]]
    half_scales: bool = True  # scales are float16 whatever they were


def check_keys(settings: Settings, known: Collection[str]) -> None:
    """Raise E-CONFIG for a key that could change the meaning of the weights without our knowing."""
    unknown = sorted(set(settings.config) - set(known))
    if unknown:
        raise InputFileError(
            "E-CONFIG",
            f"config.json of {settings.name}: {unknown[0][:80]!r} is a key that dlm-edge does not know",
            "remove it if it says nothing about how the weights are stored",
        )


def effective_group(variant: Variant, columns: int) -> int:
    """The group size in memory, where every group is full: a short last group makes all of them smaller."""
    return gcd(columns, variant.group(columns))


def layer_record(name: str, variant: Variant, columns: int, method: str) -> LayerRecord:
    return LayerRecord(
        name=name,
        bits=variant.bits,
        group_size=effective_group(variant, columns),
        method=f"{method} (foreign)",
        format=variant.codes,
        zero="symmetric" if variant.symmetric else "integer",
        reordered=variant.reordered,
    )


def column_order(name: str, groups_of: NDArray[np.int64], variant: Variant, entry: TensorEntry) -> NDArray[np.int64]:
    """The order in which columns of the same group stand together. Raises E-TENSOR unless every group is full."""
    columns = len(groups_of)
    expected = np.arange(columns) // variant.group(columns)
    order = np.argsort(groups_of, kind="stable")
    if not np.array_equal(groups_of[order], expected):
        raise InputFileError(
            "E-TENSOR",
            f"{entry.file.path}: {entry.name} does not put {variant.group(columns)} columns of {columns} in each group",
            "get an intact checkpoint",
        )
    if not variant.reordered and not np.array_equal(groups_of, expected):
        raise InputFileError(
            "E-TENSOR",
            f"{entry.file.path}: {entry.name} reorders the columns of {name}, though config.json says that none are",
            "correct desc_act (actorder) in config.json",
        )
    return order.astype(np.int64)


def in_memory(
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zeros: NDArray[np.uint8] | None,
    variant: Variant,
    order: NDArray[np.int64] | None = None,
) -> QuantizedTensor:
    """Codes [out, in] in the order of the weight, scales and zeros [out, groups as stored]."""
    columns = codes.shape[1]
    if order is not None:
        codes = codes[:, order]
        if np.array_equal(order, np.arange(columns)):
            order = None
    group = effective_group(variant, columns)
    times = variant.group(columns) // group
    if times > 1:
        scales = np.repeat(scales, times, 1)[:, : columns // group]
        zeros = None if zeros is None else np.repeat(zeros, times, 1)[:, : columns // group]
    return pack(codes, np.ascontiguousarray(scales), variant.bits, zeros=zeros, order=order)


def check_group(name: str, variant: Variant, columns: int) -> None:
    """Raise E-TENSOR when the groups of a row cannot be packed into whole bytes."""
    group = effective_group(variant, columns)
    if group * container_bits(variant.bits) % 8:
        raise InputFileError(
            "E-TENSOR",
            f"{name}: {columns} columns in groups of {variant.group(columns)} do not fill whole bytes",
            "quantize it with a group size that divides the columns",
        )
