"""Attention over codes in integers (variant avx512_vnni): when it is used, and numbers at the ends of its range."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dlm_edge import kernels
from dlm_edge.kernels.quantized_pages.planes import split_codes
from dlm_edge.kernels.select_pages.reference import DENSE_KEEP
from tests.kernels import native_operators as native
from tests.kernels.test_native_sparse_attention import Case, assert_matches, expected_of, make_inputs, run

pytestmark = pytest.mark.skipif(kernels.library_path() is None, reason="the native library is not built")

CASE = Case(8, 2, 16, 128, 500, 500, 32, 16, 16, 16, active=1.0, pages=1.0)
CODES = ["int8", "int4", "int4x2", "int4x2-upper"]


@pytest.fixture(autouse=True)
def in_integers():
    if not kernels.set_simd("avx512_vnni"):
        pytest.skip("this processor has no AVX-512 VNNI")
    yield
    kernels.set_simd(None)


def attend(case: Case, overload: str, inputs: native.Arrays) -> native.Arrays:
    outputs = native.SPARSE_OUTPUTS
    return run(
        native.session("PrefixBlockAttention", inputs, outputs, overload=overload.split("-")[0], scale=case.scale),
        inputs,
    )


@pytest.mark.parametrize("overload", CODES)
@pytest.mark.parametrize(("head_dim", "is_exact"), [(64, False), (256, False), (80, True), (72, True)])
def test_shapes_that_do_not_fit_have_the_bits_of_the_exact_variant(head_dim, is_exact, overload):
    inputs = make_inputs(replace(CASE, head_dim=head_dim), overload, DENSE_KEEP)
    integers = attend(CASE, overload, inputs)
    assert kernels.set_simd("avx512")
    exact = attend(CASE, overload, inputs)
    for name in native.SPARSE_OUTPUTS:
        assert np.array_equal(integers[name], exact[name]) == is_exact, name


@pytest.mark.parametrize("cache_type", ["sparse", "sparse_fp16"])
def test_other_caches_stay_exact(cache_type):
    inputs = make_inputs(CASE, cache_type, DENSE_KEEP)
    integers = attend(CASE, cache_type, inputs)
    assert kernels.set_simd("avx512")
    exact = attend(CASE, cache_type, inputs)
    for name in native.SPARSE_OUTPUTS:
        np.testing.assert_array_equal(integers[name], exact[name], err_msg=name)


@pytest.mark.parametrize("overload", CODES)
@pytest.mark.parametrize("page_size", [8, 7, 5, 1])
def test_any_number_of_keys_in_a_page(page_size, overload):
    case = replace(CASE, page_size=page_size, n_slots=500 // page_size + 40, pages=0.3)
    inputs = make_inputs(replace(case, k_group=page_size), overload, DENSE_KEEP)
    assert_matches(case, inputs, attend(case, overload, inputs), expected_of(case, inputs))


@pytest.mark.parametrize("overload", CODES)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_the_longest_keys_do_not_overflow(head_dim, overload):
    """Every key is as long as its codes allow and parallel to the queries, half of them the other way round."""
    case = replace(CASE, head_dim=head_dim, cache_len=480, start=480)  # no exact keys
    inputs = make_inputs(case, overload, DENSE_KEEP)
    ends = 15 if overload == "int4" else 255
    sign = np.where(np.arange(head_dim) % 3 == 0, -1, 1)
    away = np.where(np.arange(case.capacity) % 2 == 0, -1, 1)[:, None] * sign
    codes = np.where(away > 0, ends, 0).astype(np.uint8)
    if overload == "int4":
        codes = codes[:, ::2] | codes[:, 1::2] << 4
    if "planes" in inputs:
        codes, inputs["k_lower"][:] = split_codes(codes)
    inputs["k_cache"][:] = codes
    inputs["k_scale"][:] = 16 / ends
    inputs["k_low"][:] = -8
    inputs["q"][:] = 0.02 * sign
    assert_matches(case, inputs, attend(case, overload, inputs), expected_of(case, inputs))


@pytest.mark.parametrize("overload", CODES)
def test_negative_scales_zero_scales_and_huge_queries(overload):
    inputs = make_inputs(CASE, overload, DENSE_KEEP)
    expected = attend(CASE, overload, inputs)
    largest = 15 if overload == "int4" else 255
    for side in ("k", "v"):  # code -> largest - code, the same numbers from the other end
        codes, scale, low = (inputs[f"{side}_{part}"] for part in ("cache", "scale", "low"))
        inputs[f"{side}_low"] = (low.astype(np.float32) + largest * scale.astype(np.float32)).astype(np.float16)
        inputs[f"{side}_cache"], inputs[f"{side}_scale"] = ~codes, -scale
        if "planes" in inputs:
            inputs[f"{side}_lower"] = ~inputs[f"{side}_lower"]
    inputs["k_scale"][0, 0, 3, 5] = inputs["v_scale"][0, 0, 40] = 0
    inputs["k_scale"][0, 1, 2], inputs["k_low"][0, 1, 2] = 0, 0
    assert_matches(CASE, inputs, attend(CASE, overload, inputs), expected_of(CASE, inputs))
    assert np.isfinite(expected["out"]).all()

    inputs["q"][0, 0, 0] *= 1e30  # one key has all the weight: the score's error decides which, not the operator
    assert np.isfinite(attend(CASE, overload, inputs)["out"]).all()
    for small in (0.0, 1e-40):
        inputs["q"][0, 0, 0] = small
        assert_matches(CASE, inputs, attend(CASE, overload, inputs), expected_of(CASE, inputs))


@pytest.mark.parametrize("overload", CODES)
@pytest.mark.parametrize("name", ["k_scale", "k_low", "v_scale", "v_low"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_reaches_the_rows_that_see_it(value, name, overload):
    inputs = make_inputs(CASE, overload, DENSE_KEEP)
    inputs[name][0, 1, 2, 1] = value
    out = attend(CASE, overload, inputs)["out"].reshape(16, 8, 128)
    assert np.isfinite(out[:, :4]).all()
    assert not np.isfinite(out[:, 4:]).all(axis=2).any()
