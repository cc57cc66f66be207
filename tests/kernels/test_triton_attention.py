"""The Triton kernels of PrefixBlockAttention, interpreted, against the NumPy definition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from dlm_edge.kernels.prefix_block_attention import reference
from dlm_edge.kernels.quantized_pages.reference import dequantize_cache, quantize_keys, quantize_values
from tests.kernels.interpreted import launch, normal, tensor

pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")  # log2(0), of NumPy

FULL = 2**40
# Inputs are standard normal. Largest errors measured over these cases and 5 seeds: in float32 1.4e-6 of the output and
# 1.9e-6 of the log-sum-exp; in float16 9.8e-4 of the output, which is one rounding of weights, result and (for pages of
# codes) keys and values. The bounds leave a factor of two.
TOLERANCE = {np.float32: 4e-6, np.float16: 2e-3}


@dataclass(frozen=True)
class Case:
    n_heads: int
    n_kv_heads: int
    q_len: int
    head_dim: int
    n_slots: int
    page_size: int
    start: int
    cache_len: int
    attn_block: int
    n_rows: int

    @property
    def capacity(self) -> int:
        return self.n_slots * self.page_size

    def __str__(self) -> str:
        return f"h{self.n_heads}x{self.n_kv_heads}-q{self.q_len}-d{self.head_dim}-s{self.start}-c{self.cache_len}"


CASES = [
    Case(4, 2, 16, 64, 16, 16, 200, 200, 16, 16),
    Case(2, 2, 5, 128, 12, 8, 90, 77, 8, 8),  # more rows of state than the window has
    Case(6, 2, 10, 80, 8, 32, 64, 230, FULL, 6),  # cache behind the window, rows without state
    Case(7, 1, 8, 96, 4, 16, 0, 0, 8, 8),  # no prefix
    Case(8, 1, 20, 64, 1, 300, 300, 300, 4, 20),  # one page: rematerialised rows
    Case(3, 3, 1, 256, 3, 16, 40, 40, 1, 1),
    Case(5, 1, 33, 64, 40, 16, 640, 640, 1, 16),  # several row tiles, causal window
]


class Inputs:
    """Random inputs of a case; `share` of the pages and of the rows with state are chosen."""

    def __init__(self, case: Case, dtype: type, *, share: float = 0.5, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        c = case
        self.q = normal(rng, dtype, 1, c.n_heads, c.q_len, c.head_dim)
        self.k, self.v = (normal(rng, dtype, 1, c.n_kv_heads, c.q_len, c.head_dim) for _ in range(2))
        self.k_cache, self.v_cache = (normal(rng, dtype, 1, c.n_kv_heads, c.capacity, c.head_dim) for _ in range(2))
        self.active = (rng.random((c.n_kv_heads, c.q_len)) < share).astype(np.uint8)
        self.active[:, c.n_rows :] = 1
        self.pages = (rng.random((c.n_kv_heads, c.n_slots)) < share).astype(np.uint8)
        self.pages[:, -(-c.cache_len // c.page_size) :] = 0
        self.prefix_out = normal(rng, np.float32, 1, c.n_heads, c.n_rows, c.head_dim)
        self.prefix_lse = normal(rng, np.float32, 1, c.n_heads, c.n_rows)
        self.masses = normal(rng, np.float32, 1, c.n_kv_heads, c.n_slots)

    def window(self) -> list:
        return [tensor(x) for x in (self.q, self.k, self.v)]

    def cache(self) -> launch.Cache:
        return launch.Cache(tensor(self.k_cache), tensor(self.v_cache))

    def state(self) -> launch.PrefixState:
        return launch.PrefixState(tensor(self.prefix_out), tensor(self.prefix_lse), tensor(self.masses))


def run_sparse(case: Case, x: Inputs, *, cache: launch.Cache | None = None, measure: bool = False, scale: float = 0.0):
    state = x.state()
    out = launch.sparse_attention(
        *x.window(), cache or x.cache(), case.start, case.cache_len, case.attn_block, tensor(x.active), tensor(x.pages),
        measure, state, scale=scale,
    )  # fmt: skip
    results = (out, state.prefix_out, state.prefix_lse, state.masses)
    return reference.SparseResult(*(each.numpy() for each in results))


def define_sparse(case: Case, x: Inputs, *, measure: bool = False, scale: float = 0.0) -> reference.SparseResult:
    q, k, v = (each.astype(np.float32) for each in (x.q, x.k, x.v))
    return reference.sparse_prefix_block_attention(
        q, k, v, x.k_cache, x.v_cache, case.start, case.cache_len, case.attn_block, x.active, x.pages, measure,
        x.prefix_out, x.prefix_lse, x.masses, scale=scale,
    )  # fmt: skip


def assert_close(actual: reference.SparseResult, expected: reference.SparseResult, tolerance: float) -> None:
    for name, got, wanted in zip(expected._fields, actual, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_dense_matches_the_definition(case, dtype):
    x = Inputs(case, dtype)
    window = [each.astype(np.float32) for each in (x.q, x.k, x.v)]
    numbers = (case.start, case.cache_len, case.attn_block)
    expected = reference.prefix_block_attention(*window, x.k_cache, x.v_cache, *numbers)
    actual = launch.dense_attention(*x.window(), x.cache(), *numbers)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("dtype", "measure"), [(np.float32, True), (np.float16, False)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sparse_matches_the_definition(case, measure, dtype):
    x = Inputs(case, dtype)
    expected = define_sparse(case, x, measure=measure, scale=0.2)
    assert_close(run_sparse(case, x, measure=measure, scale=0.2), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("n_rep", range(1, 9))
def test_every_group_of_heads(n_rep):
    case = Case(n_rep, 1, 6, 64, 6, 16, 90, 90, 6, 6)
    x = Inputs(case, np.float32)
    assert_close(run_sparse(case, x), define_sparse(case, x), TOLERANCE[np.float32])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[2], CASES[3]], ids=str)
def test_quantized_pages_match_the_definition(case, bits):
    group, value_group = case.page_size, 16
    x = Inputs(case, np.float16)
    keys, values = x.k_cache.astype(np.float32), x.v_cache.astype(np.float32)
    k, v = quantize_keys(keys, bits, group), quantize_values(values, bits, value_group)
    begin = case.cache_len // group * group
    tail = np.full((1, case.n_kv_heads, group, case.head_dim), np.nan, np.float32)
    tail[:, :, : case.cache_len - begin] = keys[:, :, begin : case.cache_len]
    k.codes[:, :, begin:] = 255  # of the incomplete group, and never to be read
    x.k_cache, x.v_cache = dequantize_cache(k, tail, v, case.cache_len, bits)
    padding = [(0, 0), (0, 0), (0, case.capacity - case.cache_len), (0, 0)]
    x.k_cache, x.v_cache = (np.pad(each, padding) for each in (x.k_cache, x.v_cache))
    parts = [tensor(each) for each in (k.codes, v.codes)]
    scales = [tensor(each) for each in (k.scale, k.low, tail, v.scale, v.low)]
    actual = run_sparse(case, x, cache=launch.Cache(*parts, bits, *scales), measure=True)
    assert_close(actual, define_sparse(case, x, measure=True), TOLERANCE[np.float16])


def test_everything_chosen_equals_dense():
    case = CASES[0]
    x = Inputs(case, np.float32)
    x.active[:], x.pages[:, : -(-case.cache_len // case.page_size)] = 1, 1
    dense = launch.dense_attention(*x.window(), x.cache(), case.start, case.cache_len, case.attn_block)
    np.testing.assert_allclose(run_sparse(case, x).out, dense.numpy(), rtol=0, atol=TOLERANCE[np.float32])


def test_nothing_chosen_leaves_prefix_and_state_alone():
    case = CASES[0]
    x = Inputs(case, np.float32, share=0.0)
    x.k_cache[:] = x.v_cache[:] = np.nan
    found = run_sparse(case, x)
    assert np.isfinite(found.out).all()
    np.testing.assert_array_equal(found.prefix_out, x.prefix_out)
    np.testing.assert_array_equal(found.prefix_lse, x.prefix_lse)


def test_what_is_not_seen_has_no_influence():
    case = CASES[2]
    x = Inputs(case, np.float32)
    before = run_sparse(case, x, measure=True)
    positions = np.arange(case.capacity)
    window = (positions >= case.start) & (positions < case.start + case.q_len)
    for head in range(case.n_kv_heads):
        hidden = (positions >= case.cache_len) | window | (x.pages[head].repeat(case.page_size) == 0)
        x.k_cache[0, head, hidden] = x.v_cache[0, head, hidden] = np.nan
    assert_close(run_sparse(case, x, measure=True), before, 0.0)


def test_another_step_with_the_same_queries_changes_nothing():
    """A dense step stores what a step that reuses every row then needs."""
    case = CASES[0]
    x = Inputs(case, np.float32)
    x.active[:], x.pages[:, : -(-case.cache_len // case.page_size)] = 1, 1
    first = run_sparse(case, x)
    x.active[:], x.pages[:] = 0, 0
    x.prefix_out, x.prefix_lse = first.prefix_out, first.prefix_lse
    np.testing.assert_allclose(run_sparse(case, x).out, first.out, rtol=0, atol=TOLERANCE[np.float32])
