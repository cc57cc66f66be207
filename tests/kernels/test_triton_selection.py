"""The Triton kernels of SelectPages, interpreted, against the NumPy definition: equal, not close."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dlm_edge.kernels.select_pages import reference
from dlm_edge.kernels.select_pages.reference import (
    DENSE,
    DENSE_KEEP,
    REUSE_PAGES,
    REUSE_ROWS,
    SELECT,
    SELECT_ROWS,
    Policy,
)
from tests.kernels.interpreted import launch, tensor

BASE = Policy(mode=SELECT, n_pages=3, n_active=2)
POLICIES = {
    "dense": replace(BASE, mode=DENSE),
    "losa": BASE,
    "quest": replace(BASE, n_active=99),
    "reuse-rows": replace(BASE, mode=REUSE_ROWS),
    "mage": replace(BASE, mode=REUSE_PAGES),
    "mage-first": replace(BASE, mode=DENSE_KEEP),
    "losa-by-masses": replace(BASE, mode=SELECT_ROWS),
    "losa-by-masses-and-head": replace(BASE, mode=SELECT_ROWS, per_head=1),
    "no-rows": replace(BASE, mode=SELECT_ROWS, n_active=0),
    "by-head": replace(BASE, per_head=1, since_stored=1),
    "one-list": replace(BASE, one_list=1, sink=2, recent=2),
    "few-pages": replace(BASE, n_pages=1, sink=2, recent=3),
    "all-pages": replace(BASE, n_pages=99),
    "no-pages": replace(BASE, n_pages=0, sink=0, recent=0),
}


class Inputs:
    """Small integers, so that every sum is exact in any order and equal scores are common."""

    def __init__(self, n_heads, n_kv_heads, q_len, head_dim, n_slots, n_rows, seed=0):
        rng = np.random.default_rng(seed)

        def integers(*shape: int) -> np.ndarray:
            return rng.integers(-2, 3, shape).astype(np.float16)

        self.q, self.q_last = integers(1, n_heads, q_len, head_dim), integers(1, n_heads, n_rows, head_dim)
        self.q_stored = integers(1, n_heads, n_rows, head_dim)
        keys = rng.integers(-127, 128, (3, 1, n_kv_heads, n_slots, head_dim)).astype(np.int8)
        self.low, self.high = keys.min(0), keys.max(0)
        self.page_scale = 2.0 ** rng.integers(-2, 3, (1, n_kv_heads, n_slots)).astype(np.float32)
        self.masses = rng.integers(0, 5, (1, n_kv_heads, n_slots)).astype(np.float32)

    def arrays(self) -> list[np.ndarray]:
        return [self.q, self.low, self.high, self.page_scale, self.q_last, self.q_stored, self.masses]


def assert_equal(x: Inputs, start: int, cache_len: int, policy: Policy, drift: float = np.inf) -> None:
    arrays = [each.astype(np.float32) if each.dtype == np.float16 else each for each in x.arrays()]
    expected = reference.select_pages(*arrays, start, cache_len, policy, drift)
    tensors = [tensor(each) for each in x.arrays()]
    found = launch.select_pages(*tensors, start, cache_len, policy, drift)
    results = (found.active, found.pages, tensors[4], tensors[5], found.stats)
    for name, actual, wanted in zip(expected._fields, results, expected, strict=True):
        np.testing.assert_array_equal(actual.numpy(), wanted, err_msg=name)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_every_policy(policy):
    assert_equal(Inputs(4, 2, 4, 64, 12, 4), 170, 170, policy)


@pytest.mark.parametrize(
    ("shape", "start", "cache_len"),
    [
        pytest.param((3, 1, 5, 80, 9, 3), 20, 140, id="cache-behind-the-window"),
        pytest.param((2, 2, 4, 64, 7, 8), 100, 97, id="more-state-than-window"),
        pytest.param((2, 1, 4, 64, 3, 4), 0, 0, id="no-prefix"),
        pytest.param((1, 1, 2, 64, 1100, 2), 17600, 17600, id="many-pages"),
    ],
)
def test_shapes(shape, start, cache_len):
    assert_equal(Inputs(*shape), start, cache_len, BASE)


def test_a_drifted_row_becomes_active():
    x = Inputs(2, 2, 5, 64, 4, 5)
    policy = replace(BASE, n_active=0)
    active = launch.select_pages(*map(tensor, x.arrays()), 64, 64, policy, 2.0).active
    assert 0 < active.sum() < active.numel()
    assert_equal(x, 64, 64, policy, 2.0)


def test_equal_queries_choose_the_first_rows():
    x = Inputs(2, 1, 6, 64, 4, 6)
    x.q_last = x.q_stored = x.q.copy()
    assert_equal(x, 64, 64, BASE)


def test_masses_with_negative_zero_infinity_and_nan():
    x = Inputs(1, 1, 2, 64, 8, 2)
    x.masses[0, 0] = [-0.0, 0.0, np.inf, -1.0, np.nan, 1e-45, -np.inf, -0.0]
    for n_pages in range(9):
        assert_equal(x, 128, 128, replace(BASE, mode=REUSE_PAGES, n_pages=n_pages, sink=0, recent=0))
