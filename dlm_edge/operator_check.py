"""The native operators on one small case each, against their NumPy definitions: does this build compute what it should?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge import kernels
from dlm_edge.kernels.dequantize_rows.reference import dequantize_rows, encode_rows
from dlm_edge.kernels.pattern_attention.reference import pattern_attention
from dlm_edge.kernels.prefix_block_attention.reference import prefix_block_attention, sparse_prefix_block_attention
from dlm_edge.kernels.qlinear.inputs import linear_inputs
from dlm_edge.kernels.qlinear.reference import qlinear
from dlm_edge.kernels.quantize_rows.reference import quantize_rows
from dlm_edge.kernels.select_pages.reference import DENSE_KEEP, SELECT, Policy, select_pages
from dlm_edge.one_node_model import one_node_model

Arrays = dict[str, NDArray[Any]]
HEADS, KV_HEADS, ROWS, HEAD_DIM, STORED, SLOTS, PAGE, BLOCK = 4, 2, 8, 32, 40, 4, 16, 8
# Largest difference measured over 20 seeds in every vector width: 7.2e-7. A wrong kernel is off by far more.
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Case:
    operator: str
    inputs: Arrays
    outputs: tuple[str, ...]
    expected: Callable[[Arrays], tuple[NDArray[Any], ...]]
    overload: str = ""
    attributes: Mapping[str, int | str] = field(default_factory=dict)


def differences(ort: Any, *, seed: int = 0) -> dict[str, float]:
    """{operator: largest difference}. Raises what ONNX Runtime raises where it cannot run one; E-NATIVE."""
    found: dict[str, float] = {}
    for case in make_cases(seed):
        wanted = case.expected(case.inputs)
        kinds = {name: array.dtype for name, array in zip(case.outputs, wanted, strict=True)}
        operator = (case.operator, kernels.DOMAIN, kernels.OPERATOR_VERSION)
        inputs = {name: array.dtype for name, array in case.inputs.items()}
        model = one_node_model(operator, inputs, kinds, overload=case.overload, attributes=case.attributes)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        kernels.register(options)
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        actual = session.run(list(case.outputs), case.inputs)
        name = f"{case.operator} {case.overload}".strip()
        found[name] = max(largest(one, other) for one, other in zip(actual, wanted, strict=True))
    return found


def largest(actual: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Infinity for another shape, or for NaN where a number belongs."""
    if actual.shape != wanted.shape:
        return float("inf")
    one, other = actual.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinities, which are right where both are the same
        difference = np.abs(np.where(one == other, 0.0, one - other)).max(initial=0.0)
    return float("inf") if np.isnan(difference) else float(difference)


def make_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal((1, *shape)).astype(np.float32)

    window: Arrays = {
        "q": normal(HEADS, ROWS, HEAD_DIM),
        "k": normal(KV_HEADS, ROWS, HEAD_DIM),
        "v": normal(KV_HEADS, ROWS, HEAD_DIM),
        "k_cache": normal(KV_HEADS, SLOTS * PAGE, HEAD_DIM),
        "v_cache": normal(KV_HEADS, SLOTS * PAGE, HEAD_DIM),
        "start": np.array([STORED]),
        "cache_len": np.array([STORED]),
        "attn_block": np.array([BLOCK]),
    }
    sparse: Arrays = window | {
        "active": rng.integers(0, 2, (KV_HEADS, ROWS), np.uint8),
        "pages": np.array([[1, 0, 1, 0], [0, 1, 1, 0]], np.uint8),
        "policy": np.array(astuple(Policy(mode=DENSE_KEEP))),
        "prefix_out": normal(HEADS, ROWS, HEAD_DIM),
        "prefix_lse": normal(HEADS, ROWS),
        "masses": normal(KV_HEADS, SLOTS),
    }
    low, high = np.sort(rng.integers(-127, 128, (2, 1, KV_HEADS, SLOTS, HEAD_DIM)).astype(np.int8), axis=0)
    policy = Policy(mode=SELECT, n_pages=2, n_active=3, page_size=PAGE)
    select: Arrays = {
        "q": window["q"],
        "low": low,
        "high": high,
        "page_scale": rng.random((1, KV_HEADS, SLOTS)).astype(np.float32),
        "q_last": normal(HEADS, ROWS, HEAD_DIM),
        "q_stored": normal(HEADS, ROWS, HEAD_DIM),
        "masses": sparse["masses"],
        "start": window["start"],
        "cache_len": window["cache_len"],
        "policy": np.array(astuple(policy)),
        "drift": np.array([np.inf], np.float32),
    }
    codes, scale, offset = encode_rows(normal(64, HEAD_DIM)[0], bits=4, axis="token", group=16)
    rows: Arrays = {
        "codes": codes,
        "scale": scale,
        "low": offset,
        "tail": np.empty((0, HEAD_DIM), np.float32),
        "rows": rng.integers(0, STORED, 20),
        "cache_len": window["cache_len"],
    }
    new_rows: Arrays = {"rows": normal(20, HEAD_DIM), "count": np.array([STORED // 3]), "group": np.array([16])}
    keep = Policy(mode=DENSE_KEEP, sink=2, n_pages=1, n_active=2, page_size=PAGE)
    pattern: Arrays = {
        "q": normal(HEADS, 3 * PAGE + 5, HEAD_DIM),
        "k": normal(KV_HEADS, 3 * PAGE + 5, HEAD_DIM),
        "v": normal(KV_HEADS, 3 * PAGE + 5, HEAD_DIM),
        "policy": np.array(astuple(keep)),
        "pattern": np.zeros((HEADS, SLOTS, SLOTS), np.uint8),
    }
    return [
        Case("PrefixBlockAttention", window, ("out",), dense_result, "dense"),
        Case(
            "PrefixBlockAttention",
            sparse,
            ("out", "new_prefix_out", "new_prefix_lse", "new_masses"),
            sparse_result,
            "sparse",
        ),
        Case(
            "SelectPages",
            select,
            ("active", "pages", "new_q_last", "new_q_stored", "stats"),
            lambda given: select_pages(**given | numbers(given) | {"policy": policy, "drift": np.inf}),
        ),
        Case(
            "DequantizeRows",
            rows,
            ("values",),
            lambda given: (dequantize_rows(**given | numbers(given), bits=4, axis="token"),),
            attributes={"bits": 4, "axis": "token"},
        ),
        Case(
            "QuantizeRows",
            new_rows,
            ("codes", "scale", "low"),
            lambda given: quantize_rows(given["rows"], STORED // 3, 16, bits=4, axis="token")[:3],
            attributes={"bits": 4, "axis": "token"},
        ),
        linear_case(rng),
        Case(
            "PatternAttention",
            pattern,
            ("out", "new_pattern", "stats"),
            lambda given: pattern_attention(given["q"], given["k"], given["v"], keep, given["pattern"]),
        ),
    ]


def linear_case(rng: np.random.Generator) -> Case:
    """QLinear with integer zeros, a bias and outlier columns; outputs that do not fill their last tile."""
    rows, width, out, group = 5, 96, 40, 32
    groups = width // group
    weight = linear_inputs(
        rng.integers(0, 16, (out, width), np.uint8),
        (0.1 + rng.random((out, groups))).astype(np.float16),
        bits=4,
        zeros=rng.integers(0, 16, (out, groups), np.uint8),
        bias=rng.standard_normal(out).astype(np.float32),
        outlier_columns=np.array([3, 70]),
        outlier_weights=rng.standard_normal((out, 2)).astype(np.float32),
    )
    x = rng.standard_normal((1, rows, width)).astype(np.float32)
    return Case(
        "QLinear",
        {"x": x} | {each.name: getattr(weight, each.name) for each in fields(weight)},
        ("y",),
        lambda given: (qlinear(given["x"], weight, out_features=out, bits=4, group_size=group),),
        attributes={"in_features": width, "out_features": out, "bits": 4, "group_size": group, "gated": 0},
    )


def numbers(given: Arrays) -> dict[str, Any]:
    """Positions, which the definitions take as plain integers."""
    return {name: int(given[name][0]) for name in ("start", "cache_len", "attn_block") if name in given}


def dense_result(given: Arrays) -> tuple[NDArray[Any], ...]:
    return (prefix_block_attention(**given | numbers(given)),)


def sparse_result(given: Arrays) -> tuple[NDArray[Any], ...]:
    inputs = {name: array for name, array in given.items() if name != "policy"}
    return sparse_prefix_block_attention(**inputs | numbers(given), measure=True)
