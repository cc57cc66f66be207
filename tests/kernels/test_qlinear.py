"""QLinear: the layout, the definition, and the native kernels against it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from dlm_edge import kernels
from dlm_edge.kernels.qlinear.gating import gated_rows
from dlm_edge.kernels.qlinear.inputs import LinearInputs, can_run, linear_inputs
from dlm_edge.kernels.qlinear.layout import BITS, from_tiles, pack_tiles, to_tiles, unpack_tiles
from dlm_edge.kernels.qlinear.reference import qlinear, round_rows
from tests.kernels import native_operators as native
from tests.kernels.linear_cases import CASES, Case, defined, dense_weight, make_rows, make_weight, parts_of

LINEAR_SIMD = ["amx", "avx512_vnni", "avx512", "avx_vnni", "avx2", "portable"]
ROWS = (1, 3, 17, 33)

by_case = pytest.mark.parametrize("case", CASES, ids=str)
needs_library = pytest.mark.skipif(kernels.library_path() is None, reason="the native library is not built")


def open_native(case: Case, weight: LinearInputs, x: np.ndarray, threads: int = 1) -> ort.InferenceSession:
    return native.session("QLinear", {"x": x, **parts_of(weight)}, ("y",), threads=threads, **case.sizes)


@pytest.fixture(params=LINEAR_SIMD)
def simd(request):
    if not kernels.set_simd(request.param):
        pytest.skip(f"this processor has no {request.param}, or the library is not built")
    yield request.param
    kernels.set_simd(None)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(16, 64), (33, 100), (1, 1), (48, 192)], ids=str)
def test_layout_comes_back(shape, bits):
    codes = np.random.default_rng(0).integers(0, 2**bits, shape, dtype=np.uint8)
    packed = pack_tiles(codes, bits)
    assert packed.shape == (-(-shape[0] // 16), -(-shape[1] // 64) * 64 * bits // 32, 64)
    np.testing.assert_array_equal(unpack_tiles(packed, bits, *shape), codes)
    np.testing.assert_array_equal(from_tiles(to_tiles(codes), shape[0]), codes)


def test_a_vector_of_four_bits_holds_eight_k_of_sixteen_outputs():
    codes = np.random.default_rng(0).integers(0, 16, (32, 64), dtype=np.uint8)
    packed = pack_tiles(codes, 4)
    output, k = 21, 13  # tile 1, output 5 of it; vector 1, and of it k 5 = 4 * 1 + 1
    assert packed[1, 1, 4 * 5 + 1] >> 4 == codes[output, k]
    assert packed[1, 1, 4 * 5 + 1] & 15 == codes[output, k - 4]


def test_weights_stack_where_outputs_fill_tiles():
    cases = [Case(100, n, 4, 32, zero="integer") for n in (32, 16)]
    upper, lower = (make_weight(case, seed) for seed, case in enumerate(cases))
    stacked = {name: np.concatenate([a, parts_of(lower)[name]]) for name, a in parts_of(upper).items()}
    stacked["outlier_columns"] = upper.outlier_columns
    x = make_rows(cases[0], 3)
    both = defined(Case(100, 48, 4, 32), LinearInputs(**stacked), x)
    apart = [defined(case, weight, x) for case, weight in zip(cases, (upper, lower), strict=True)]
    np.testing.assert_array_equal(both, np.concatenate(apart, -1))


@by_case
def test_definition_is_near_the_product_in_float64(case):
    """What is lost is the rounding of rows, at most half a step of each value."""
    weight, x = make_weight(case), make_rows(case, 2)
    dense = dense_weight(case, weight)
    rows = gated_rows(x) if case.gated else x
    exact = rows @ dense.T + (weight.bias if case.bias else 0)
    block = case.group_size if case.row_blocks else case.in_features
    _, scale = round_rows(rows, weight.outlier_columns, block)
    steps = scale.repeat(block, axis=-1)[:, : case.in_features]
    dense[:, weight.outlier_columns] = 0
    bound = steps / 2 @ np.abs(dense).T + 1e-5 * (np.abs(exact) + np.abs(dense).sum(-1))
    assert (np.abs(defined(case, weight, x) - exact) <= bound).all()


@pytest.mark.parametrize("row_blocks", [False, True])
def test_rows_that_are_not_finite_give_nan_and_others_do_not_notice(row_blocks):
    case = Case(100, 33, 4, 32, outliers=2, row_blocks=row_blocks)
    weight, x = make_weight(case), make_rows(case, 6)
    clean = defined(case, weight, x[:6])
    for value in (np.nan, np.inf):
        for column in (int(weight.outlier_columns[0]), 99):
            broken = x.copy()
            broken[2, column] = value
            found = defined(case, weight, broken)
            assert np.isnan(found[2]).all()
            np.testing.assert_array_equal(np.delete(found, 2, 0), np.delete(clean, 2, 0))


def test_an_outlier_column_does_not_widen_the_grid():
    case = Case(256, 48, 8, 256, outliers=3)
    weight, x = make_weight(case), make_rows(case, 2)
    q, scale = round_rows(x, weight.outlier_columns)
    x[:, weight.outlier_columns] = 1e6
    loud_q, loud_scale = round_rows(x, weight.outlier_columns)
    np.testing.assert_array_equal(q, loud_q)
    np.testing.assert_array_equal(scale, loud_scale)


def test_one_group_of_eight_bits_is_the_integer_product_of_the_exporter():
    """export/int8_linear.py: (q u8 x s8 in int32) * row scale * weight scale; here the scales come in another order."""
    case = Case(300, 48, 8, 300)
    weight, x = make_weight(case), make_rows(case, 9)[:6]
    q, scale = round_rows(x, weight.outlier_columns)
    codes = unpack_tiles(weight.codes, 8, 48, 300).astype(np.int64) - 128
    expected = (q @ codes.T).astype(np.float32) * scale * from_tiles(weight.scales, 48)[:, 0]
    np.testing.assert_allclose(defined(case, weight, x), expected, rtol=2.4e-7)  # four roundings of float32


@by_case
def test_native_is_the_definition_to_the_bit(case, simd):
    weight = make_weight(case)
    x = make_rows(case, max(ROWS))
    tested = open_native(case, weight, x)
    for count in ROWS:
        (found,) = tested.run(None, {"x": x[-count:], **parts_of(weight)})
        np.testing.assert_array_equal(found, defined(case, weight, x[-count:]))


@needs_library
@pytest.mark.parametrize(
    "case",
    [
        Case(640, 2000, 4, 32, "integer", 2, True),
        Case(1300, 700, 8, 1300),
        Case(1300, 700, 4, 1024, "float", 2, row_blocks=True),
    ],
    ids=str,
)
def test_threads_and_blocks_of_rows_do_not_change_a_bit(case):
    weight, x = make_weight(case), make_rows(case, 700)
    one, two = (open_native(case, weight, x, threads).run(None, {"x": x, **parts_of(weight)})[0] for threads in (1, 2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, defined(case, weight, x))


@needs_library
def test_leading_dimensions_are_kept():
    case = Case(100, 33, 4, 32)
    weight, x = make_weight(case), make_rows(case, 6)
    flat = defined(case, weight, x)
    for lead in [(2, 3), (1, 6), (1, 2, 3), (6,)]:
        shaped = x.reshape(*lead, 100)
        (found,) = open_native(case, weight, shaped).run(None, {"x": shaped, **parts_of(weight)})
        np.testing.assert_array_equal(found, flat.reshape(*lead, 33))
    none = x[None, :0]
    assert open_native(case, weight, none).run(None, {"x": none, **parts_of(weight)})[0].shape == (1, 0, 33)


BASE = Case(100, 33, 4, 32, zero="integer", outliers=2, bias=True)


@needs_library
@pytest.mark.parametrize("name", ["codes", "scales", "zeros", "bias", "outlier_weights"])
def test_parts_of_wrong_shapes_are_refused(name):
    weight, x = make_weight(BASE), make_rows(BASE, 3)
    array = getattr(weight, name)
    for axis in range(array.ndim):
        for change in (-1, 1):
            dims = list(array.shape)
            dims[axis] += change
            damaged = replace(weight, **{name: np.zeros(dims, array.dtype)})
            with pytest.raises(InvalidArgument, match=f"QLinear: {name} has shape"):
                open_native(BASE, damaged, x).run(None, {"x": x, **parts_of(damaged)})


@needs_library
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(bits=3), "bits is 3, expected 8, 4 or 2"),
        (dict(in_features=0), "in_features is 0"),
        (dict(in_features=65537), "in_features is 65537, expected 1 to 65536"),
        (dict(in_features=2**62), "in_features is"),
        (dict(out_features=0), "out_features is 0"),
        (dict(out_features=2**40), "out_features is"),
        (dict(group_size=0), "group_size is 0"),
        (dict(group_size=24), "group_size is 24, expected a multiple of 16, or in_features"),
        (dict(group_size=-32), "group_size is -32"),
        (dict(gated=2), "gated is 2, expected 0 or 1"),
        (dict(row_blocks=-1), "row_blocks is -1, expected 0 or 1"),
    ],
)
def test_attributes_out_of_range_are_refused(change, message):
    weight, x = make_weight(BASE), make_rows(BASE, 3)
    with pytest.raises(Exception, match=f"QLinear: {message}"):
        native.session("QLinear", {"x": x, **parts_of(weight)}, ("y",), **{**BASE.sizes, **change})


@needs_library
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=np.zeros((3, 99), np.float32)), r"x has shape \[3, 99\], expected \[.., rows, in_features\]"),
        (dict(x=np.zeros(100, np.float32)), "x has shape"),
        (dict(x=np.zeros((1, 1, 1, 1, 100), np.float32)), "x has shape"),
        (dict(scales=np.zeros((3, 4, 16), np.uint8)), "scales must be float or float16"),
        (dict(float_zeros=np.zeros((3, 4, 16), np.float32)), "has both zeros and float_zeros"),
        (dict(float_zeros=np.zeros((3, 5, 16), np.float32)), "float_zeros has shape"),
        (dict(outlier_columns=np.array([5, 5])), "outlier_columns has 5 at 1, expected ascending"),
        (dict(outlier_columns=np.array([5, 100])), "outlier_columns has 100 at 1"),
        (dict(outlier_columns=np.array([-1, 5])), "outlier_columns has -1 at 0"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    inputs = {"x": make_rows(BASE, 3), **parts_of(make_weight(BASE)), **change}
    with pytest.raises(InvalidArgument, match=f"QLinear: {message}"):
        native.session("QLinear", inputs, ("y",), **BASE.sizes).run(None, inputs)


def test_what_can_run():
    assert can_run(1536, 128, 4) and can_run(1000, 1000, 8) and can_run(65536, 64, 2)
    assert not can_run(1536, 24, 4) and not can_run(65537, 64, 4) and not can_run(1536, 128, 3)


def test_absent_parts_take_no_room():
    weight = linear_inputs(np.zeros((48, 64), np.uint8), np.ones((48, 2), np.float32), bits=4)
    assert weight.zero == "middle"
    empty = [weight.zeros, weight.float_zeros, weight.bias, weight.outlier_columns, weight.outlier_weights]
    assert all(array.size == 0 for array in empty)
    assert qlinear(np.ones((2, 64), np.float32), weight, out_features=48, bits=4, group_size=32).shape == (2, 48)
