"""Copies of a window in one call of the native operators: the NumPy definition, and the bits of calls of their own."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from dlm_edge import kernels
from dlm_edge.kernels.prefix_block_attention import reference
from dlm_edge.kernels.select_pages.reference import DENSE, DENSE_KEEP, SELECT, Policy, select_pages
from tests.kernels import native_operators as native
from tests.kernels import test_native_select_pages as selection
from tests.kernels import test_native_sparse_attention as sparse
from tests.kernels import test_prefix_block_attention as dense

pytestmark = pytest.mark.skipif(kernels.library_path() is None, reason="the native library is not built")

FULL = 2**40
COPIES = [1, 2, 3, 5]
DENSE_CASES = [
    dense.Case(12, 2, 16, 128, 16, 16, 64, 16),
    dense.Case(5, 1, 17, 80, 1, 1, 20, 4),
    dense.Case(4, 2, 16, 32, 0, 0, 16, 8),  # two blocks and no prefix
    dense.Case(6, 3, 1, 40, 63, 63, 70, 1),
    dense.Case(4, 2, 33, 80, 0, 500, 500, FULL),
    dense.Case(12, 2, 3, 40, 700, 1500, 1500, FULL),  # split key ranges on both sides of the window
]
SPARSE_CASES = [
    sparse.Case(32, 8, 16, 128, 1000, 1000, 64, 16, 16, 16),
    sparse.Case(7, 1, 32, 80, 500, 500, 16, 32, 32, 16),  # a window of two blocks; the last page is not full
    sparse.Case(4, 2, 16, 64, 0, 0, 16, 16, 16, 8),  # no prefix
    sparse.Case(4, 2, 16, 64, 0, 0, 1, 0, 16, 16),  # no cache
    sparse.Case(5, 5, 1, 16, 33, 33, 4, 16, 16),
    sparse.Case(3, 1, 7, 72, 100, 97, 8, 16, 20, 4),  # more state than rows
    sparse.Case(4, 2, 20, 64, 64, 64, 12, 16, 1, 4),  # less
    sparse.Case(4, 2, 20, 64, 64, 64, 12, 16, 0, 4),  # none
    sparse.Case(6, 2, 16, 64, 40, 256, 16, 16, 16),  # keys behind the window
    sparse.Case(2, 1, 16, 64, 2048, 2048, 130, 16, 16, 16, pages=0.9),  # split key ranges
]


def with_copies(inputs: native.Arrays, n: int, *names: str) -> native.Arrays:
    """The first copy is what it was; the others are random."""
    rng = np.random.default_rng(n)
    more = {name: rng.standard_normal((n - 1, *inputs[name].shape[1:])).astype(inputs[name].dtype) for name in names}
    return inputs | {name: np.concatenate([inputs[name], more[name]]) for name in names}


def one_of(inputs: native.Arrays, copy: int) -> native.Arrays:
    return inputs | {name: inputs[name][copy : copy + 1] for name in ("q", "k", "v")}


@pytest.fixture
def force_simd():
    yield lambda name: kernels.set_simd(name) or pytest.skip(f"this processor has no {name}")
    kernels.set_simd(None)


@pytest.fixture(scope="module")
def dense_session():
    inputs = dense.make_inputs(DENSE_CASES[0])
    return native.session("PrefixBlockAttention", inputs, ("out",), overload="dense")


@pytest.fixture(scope="module")
def sparse_sessions():
    return {
        overload: native.session(
            "PrefixBlockAttention",
            sparse.make_inputs(SPARSE_CASES[0], overload),
            native.SPARSE_OUTPUTS,
            overload=overload.split("-")[0],
        )
        for overload in sparse.OVERLOADS
    }


@pytest.mark.parametrize("n", COPIES)
@pytest.mark.parametrize("case", DENSE_CASES, ids=str)
def test_dense_attention_of_copies(case, n, dense_session):
    inputs = with_copies(dense.make_inputs(case), n, "q", "k", "v")
    (out,) = dense_session.run(None, inputs)
    assert out.shape == (n, case.q_len, case.n_heads * case.head_dim)
    np.testing.assert_allclose(out, dense.expected_of(case, inputs), rtol=0, atol=dense.TOLERANCE)
    for copy in range(n):
        (alone,) = dense_session.run(None, one_of(inputs, copy))
        np.testing.assert_array_equal(out[copy : copy + 1], alone)


@pytest.mark.parametrize("overload", sparse.OVERLOADS)
@pytest.mark.parametrize("n", COPIES)
@pytest.mark.parametrize("case", SPARSE_CASES, ids=str)
def test_sparse_attention_of_copies_keeps_the_state_of_the_first(case, n, overload, sparse_sessions):
    case, tested = replace(case, active=1.0), sparse_sessions[overload]
    inputs = with_copies(sparse.make_inputs(case, overload, DENSE_KEEP), n, "q", "k", "v")
    result = sparse.run(tested, inputs)
    sparse.assert_matches(case, inputs, result, sparse.expected_of(case, inputs))
    for copy in range(n):
        alone = sparse.run(tested, one_of(inputs, copy))
        np.testing.assert_array_equal(result["out"][copy : copy + 1], alone["out"])
        for name in sparse.STATE if copy == 0 else ():
            np.testing.assert_array_equal(result[name], alone[name], err_msg=name)


@pytest.mark.parametrize("mode", [DENSE, DENSE_KEEP])
@pytest.mark.parametrize("simd", native.SIMD)
def test_state_in_place_is_that_of_the_first_copy(simd, mode, sparse_sessions, force_simd):
    force_simd(simd)
    case = replace(SPARSE_CASES[0], active=1.0)
    inputs = with_copies(sparse.make_inputs(case, "sparse", mode), 3, "q", "k", "v")
    apart = sparse.run(sparse_sessions["sparse"], inputs)
    out = {"out": np.full_like(apart["out"], np.nan)}
    owned = {name: array.copy() for name, array in inputs.items()}
    in_place = native.run_bound(sparse_sessions["sparse"], owned, sparse.STATE, out)
    for name in native.SPARSE_OUTPUTS:
        np.testing.assert_array_equal(in_place[name], apart[name], err_msg=name)


def test_copies_do_not_see_each_other(sparse_sessions):
    case = replace(SPARSE_CASES[1], active=1.0)
    inputs = with_copies(sparse.make_inputs(case), 3, "q", "k", "v")
    before = sparse.run(sparse_sessions["sparse"], inputs)["out"]
    for name in ("q", "k", "v"):
        inputs[name][1] = np.nan
    after = sparse.run(sparse_sessions["sparse"], inputs)["out"]
    assert np.isnan(after[1]).all()
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])


def test_the_definition_takes_copies_one_by_one():
    case = dense.Case(4, 2, 5, 16, 7, 9, 20, 4)
    inputs = with_copies(dense.make_inputs(case), 3, "q", "k", "v")
    inputs = {name: np.nan_to_num(array) if array.dtype == np.float32 else array for name, array in inputs.items()}
    together = dense.expected_of(case, inputs)
    for copy in range(3):
        np.testing.assert_array_equal(together[copy : copy + 1], dense.expected_of(case, one_of(inputs, copy)))


def test_reused_rows_of_several_copies_are_refused(sparse_sessions):
    case = replace(SPARSE_CASES[0], active=1.0)
    inputs = with_copies(sparse.make_inputs(case), 2, "q", "k", "v")
    inputs["active"][3, 5] = 0
    message = "row 5 of key/value head 3 is not active and has no result of its own in 2 copies"
    with pytest.raises(InvalidArgument, match=message):
        sparse_sessions["sparse"].run(None, inputs)
    with pytest.raises(AssertionError, match="must be active"):
        sparse.expected_of(case, inputs)


@pytest.mark.parametrize("name", ["k", "v", "k_cache", "masses"])
def test_another_number_of_copies_is_refused(name, sparse_sessions):
    inputs = with_copies(sparse.make_inputs(replace(SPARSE_CASES[0], active=1.0)), 2, "q", "k", "v")
    inputs[name] = np.zeros((3, *inputs[name].shape[1:]), np.float32)
    with pytest.raises(InvalidArgument, match=rf"{name} has shape \[3, "):
        sparse_sessions["sparse"].run(None, inputs)


@pytest.mark.parametrize("mode", [DENSE, SELECT])
def test_pages_are_chosen_by_the_first_copy(mode):
    case = replace(selection.CASES[0], policy=Policy(mode=mode, n_pages=4, n_active=5))
    inputs = selection.make_inputs(case)
    copies = with_copies(inputs, 3, "q")
    tested = native.session("SelectPages", inputs, native.SELECT_OUTPUTS)
    expected = tested.run(None, inputs)
    for found, wanted in zip(tested.run(None, copies), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    numbers = {name: int(copies[name][0]) for name in ("start", "cache_len")}
    defined = select_pages(**copies | numbers | {"policy": case.policy, "drift": np.inf})
    for found, wanted in zip(defined[:2], expected[:2], strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_kept_pattern_is_of_one_copy():
    policy = Policy(mode=DENSE, page_size=16)
    inputs = {name: np.zeros((2, 4, 32, 16), np.float32) for name in ("q", "k", "v")}
    inputs |= {"policy": np.array(astuple(policy)), "pattern": np.zeros((4, 2, 2), np.uint8)}
    tested = native.session("PatternAttention", inputs, ("out", "new_pattern", "stats"))
    with pytest.raises(InvalidArgument, match="one copy of the window"):
        tested.run(None, inputs)


def test_dense_reference_has_the_dtype_of_q():
    case = dense.Case(4, 2, 5, 16, 7, 9, 20, 4)
    inputs = with_copies(dense.make_inputs(case, dtype=np.float16), 2, "q", "k", "v")
    tensors = (np.nan_to_num(inputs[name]) for name in ("q", "k", "v", "k_cache", "v_cache"))
    found = reference.prefix_block_attention(*tensors, case.start, case.cache_len, case.attn_block)
    assert found.dtype == np.float16 and found.shape == (2, 5, 64)
