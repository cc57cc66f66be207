"""Weights and rows that QLinear is tested on, made from seeds."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from dlm_edge.kernels.qlinear.inputs import LinearInputs, linear_inputs
from dlm_edge.kernels.qlinear.layout import from_tiles, unpack_tiles
from dlm_edge.kernels.qlinear.reference import qlinear


@dataclass(frozen=True)
class Case:
    in_features: int
    out_features: int
    bits: int
    group_size: int
    zero: str = "middle"
    outliers: int = 0
    bias: bool = False
    half: bool = False
    gated: bool = False
    row_blocks: bool = False

    def __str__(self) -> str:
        parts = [f"{self.in_features}x{self.out_features}", f"b{self.bits}", f"g{self.group_size}", self.zero]
        return "-".join(parts + [n for n in ("outliers", "bias", "half", "gated", "row_blocks") if getattr(self, n)])

    @property
    def row_width(self) -> int:
        return self.in_features * (1 + self.gated)

    @property
    def sizes(self) -> dict[str, int]:
        """The attributes of the operator."""
        names = ("in_features", "out_features", "bits", "group_size", "gated", "row_blocks")
        return {name: int(getattr(self, name)) for name in names}


SHAPES = [  # in_features, out_features, group_size
    (256, 48, 64),
    (100, 33, 32),  # neither groups nor tiles are whole
    (7, 5, 16),
    (1, 1, 1),
    (300, 70, 128),
    (1100, 20, 1100),  # one group that is not a multiple of 16, and longer than a panel
    (1552, 16, 48),
    (640, 130, 32),
    (1300, 17, 1024),  # a group of several panels, and a part of one
]
EXTRAS = [
    dict(zero="middle", bias=True),
    dict(zero="integer", half=True),
    dict(zero="float", outliers=1),
    dict(zero="integer", outliers=3, bias=True),
]
# Every shape with every number of bits, and two of the extras in turn.
PLAIN_CASES = [
    Case(k, n, bits, group, **{**extra, "outliers": min(extra.get("outliers", 0), k)})
    for i, (k, n, group) in enumerate(SHAPES)
    for j, bits in enumerate((8, 4, 2))
    for extra in EXTRAS[(i + j) % 2 :: 2]
]
GATED_CASES = [
    Case(k, n, (8, 4, 2)[i % 3], group, outliers=min(i % 2 * 2, k), bias=i % 3 == 0, gated=True)
    for i, (k, n, group) in enumerate(SHAPES)
]
BLOCK_CASES = [
    Case(k, n, bits, group, **{**extra, "outliers": min(extra.get("outliers", 0), k)}, gated=gated, row_blocks=True)
    for i, (k, n, group) in enumerate(SHAPES)
    for bits, extra, gated in [
        ((8, 4, 2)[i % 3], EXTRAS[i % 4], False),
        ((4, 2, 8)[i % 3], EXTRAS[(i + 2) % 4], i % 2 == 0),
    ]
]
CASES = PLAIN_CASES + GATED_CASES + BLOCK_CASES


def make_weight(case: Case, seed: int = 0) -> LinearInputs:
    rng = np.random.default_rng(seed)
    rows, columns, groups = case.out_features, case.in_features, -(-case.in_features // case.group_size)
    codes = rng.integers(0, 2**case.bits, (rows, columns), dtype=np.uint8)
    codes[0] = 2**case.bits - 1  # the largest sums
    scales = (rng.standard_normal((rows, groups)) / 64).astype(np.float16 if case.half else np.float32)
    zeros = {
        "middle": None,
        "integer": rng.integers(0, 2**case.bits, (rows, groups), dtype=np.uint8),
        "float": (rng.random((rows, groups)) * 2**case.bits).astype(np.float32),
    }[case.zero]
    chosen = np.sort(rng.choice(columns, case.outliers, replace=False)).astype(np.int64)
    weights = rng.standard_normal((rows, case.outliers)).astype(np.float32)
    bias = rng.standard_normal(rows).astype(np.float32) if case.bias else None
    return linear_inputs(
        codes, scales, bits=case.bits, zeros=zeros, bias=bias, outlier_columns=chosen, outlier_weights=weights
    )


def parts_of(weight: LinearInputs) -> dict[str, np.ndarray]:
    return {field.name: getattr(weight, field.name) for field in fields(weight)}


def dense_weight(case: Case, weight: LinearInputs) -> np.ndarray:
    """[out, in] in float64, with the outliers' columns."""
    codes = unpack_tiles(weight.codes, case.bits, case.out_features, case.in_features).astype(np.float64)
    groups = np.arange(case.in_features) // case.group_size
    zeros = {"middle": 2.0 ** (case.bits - 1), "integer": weight.zeros, "float": weight.float_zeros}[case.zero]
    if case.zero != "middle":
        zeros = from_tiles(zeros, case.out_features)[:, groups]
    dense = (codes - zeros) * from_tiles(weight.scales, case.out_features)[:, groups]
    dense[:, weight.outlier_columns] = from_tiles(weight.outlier_weights, case.out_features)
    return dense


def make_rows(case: Case, count: int, seed: int = 1) -> np.ndarray:
    """Normal rows and, from the third on, awkward ones: equal values that give the largest codes, ties between two
    codes, an outlier, subnormal numbers, zeros of both signs, and values that are not finite. Of a gated case: such rows
    as gate and, in another order, as up; the second row has gates up to about 100."""
    if case.gated:
        gate, up = (make_rows(replace(case, gated=False), count, seed + i) for i in range(2))
        gate[1:2] *= 30
        return np.concatenate([gate, np.roll(up, 4, axis=0)], axis=-1)
    rng, k = np.random.default_rng(seed), case.in_features
    x = rng.standard_normal((count, k)).astype(np.float32)
    makers = [
        lambda: np.full(k, -3.5, np.float32),
        lambda: np.concatenate([[127], rng.integers(-252, 253, k) / 2])[:k].astype(np.float32),
        lambda: np.where(np.arange(k) == k // 2, 1e6, x[0]).astype(np.float32),
        lambda: x[0] * np.float32(1e-40),
        lambda: np.where(np.arange(k) % 2, 0.0, -0.0).astype(np.float32),
        lambda: np.where(np.arange(k) == k - 1, np.nan, x[0]).astype(np.float32),
        lambda: np.where(np.arange(k) == 0, -np.inf, x[0]).astype(np.float32),
        lambda: x[0] * np.float32(1e33),
    ]
    for row in range(2, count):
        if row < 2 + len(makers):
            x[row] = makers[row - 2]()
    return x


def defined(case: Case, weight: LinearInputs, x: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        return qlinear(x, weight, **{name: size for name, size in case.sizes.items() if name != "in_features"})
