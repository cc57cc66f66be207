"""silu(gate) * up as QLinear defines it, and where the native kernels must not differ from it."""

from __future__ import annotations

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from dlm_edge import kernels
from dlm_edge.kernels.qlinear.gating import exp_negative, gated_rows, silu
from tests.kernels import native_operators as native
from tests.kernels.linear_cases import Case, defined, make_rows, make_weight, parts_of

needs_library = pytest.mark.skipif(kernels.library_path() is None, reason="the native library is not built")
# Measured over 6 million values each.
EXP_ULP, SILU_ULP = 1.0, 4.0


def in_ulp(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    return np.abs(found - exact) / np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)


def values() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate([rng.uniform(-87, 87, 100_000), rng.standard_normal(100_000)]).astype(np.float32)


def test_exp_and_silu_are_close():
    x = values()
    exact = x.astype(np.float64)
    assert in_ulp(exp_negative(-np.abs(x)), np.exp(-np.abs(exact))).max() <= EXP_ULP
    assert in_ulp(silu(x), exact / (1 + np.exp(-exact))).max() <= SILU_ULP


def test_values_at_the_ends():
    x = np.array([0, -0.0, -86.99, -87.01, -1000, -3e38, 1000, 3e38, 1e-40, np.nan, np.inf, -np.inf], np.float32)
    found = silu(x)
    assert -1.6e-36 < found[2] < -1.3e-36
    np.testing.assert_array_equal(found[[0, 1, 3, 4, 5, 6, 7]], np.float32([0, -0.0, -0.0, -0.0, -0.0, 1000, 3e38]))
    assert np.signbit(found[[1, 2, 3, 4, 5]]).all() and not np.signbit(found[0])
    assert found[8] == np.float32(1e-40) / 2 and not np.isfinite(found[9:]).any()


def test_what_is_not_finite_is_never_hidden():
    special = np.array([0, -0.0, 1, -1000, 1000, np.nan, np.inf, -np.inf], np.float32)
    gate, up = (axis.ravel() for axis in np.meshgrid(special, special))
    found = gated_rows(np.concatenate([gate, up]))
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(gate) & np.isfinite(up))


@needs_library
@pytest.mark.parametrize("simd", ["avx512_vnni", "avx2", "portable"])
def test_gates_of_every_size_are_the_definition_to_the_bit(simd):
    """Few outputs of much weight: in rows of few values every code and the scale show."""
    if not kernels.set_simd(simd):
        pytest.skip(f"this processor has no {simd}")
    try:
        case = Case(16, 16, 8, 16, gated=True)
        weight = make_weight(case)
        gates = np.concatenate([values()[:30_000], np.float32([-86.99, -87.01, -1e4, 3e38, -3e38, 1e-40])] * 2)
        x = np.concatenate([gates[: len(gates) // 16 * 16], values()[: len(gates) // 16 * 16]]).reshape(2, -1, 16)
        x = np.concatenate([x[0], x[1]], axis=-1)
        (found,) = native.session("QLinear", {"x": x, **parts_of(weight)}, ("y",), **case.sizes).run(
            None, {"x": x, **parts_of(weight)}
        )
        np.testing.assert_array_equal(found, defined(case, weight, x))
    finally:
        kernels.set_simd(None)


@needs_library
def test_a_gated_call_wants_rows_of_twice_the_width():
    case = Case(100, 33, 4, 32, gated=True)
    inputs = {"x": make_rows(Case(100, 33, 4, 32), 3), **parts_of(make_weight(case))}
    with pytest.raises(InvalidArgument, match=r"expected \[.., rows, 2 \* in_features\] with in_features 100"):
        native.session("QLinear", inputs, ("y",), **case.sizes).run(None, inputs)


@needs_library
def test_a_node_without_the_flags_is_not_gated_and_has_no_blocks():
    case = Case(100, 33, 4, 32)
    weight, x = make_weight(case), make_rows(case, 3)
    sizes = {name: size for name, size in case.sizes.items() if name not in ("gated", "row_blocks")}
    (found,) = native.session("QLinear", {"x": x, **parts_of(weight)}, ("y",), **sizes).run(
        None, {"x": x, **parts_of(weight)}
    )
    np.testing.assert_array_equal(found, defined(case, weight, x))
