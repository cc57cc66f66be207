"""The Triton kernels of PatternAttention, interpreted, against the NumPy definition."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import numpy as np
import pytest

from dlm_edge.kernels.pattern_attention.reference import PatternResult, pattern_attention
from dlm_edge.kernels.select_pages.reference import DENSE, DENSE_KEEP, REUSE_PAGES, Policy
from tests.kernels.interpreted import launch, launch_pattern, normal, tensor

pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")  # log2(0), of NumPy

# Inputs are standard normal, queries three times that. Largest errors measured over these cases and 5 seeds: 5.0e-6 in
# float32, 2.0e-3 in float16 (a last place of results from 2 to 4). The bounds leave a factor of two.
TOLERANCE = {np.float32: 1e-5, np.float16: 4e-3}
MODES = (DENSE, DENSE_KEEP, REUSE_PAGES)
KEEP = Policy(mode=DENSE_KEEP, sink=2, n_pages=1, n_active=2, page_size=16)


@dataclass(frozen=True)
class Case:
    n_heads: int
    n_kv_heads: int
    q_len: int
    head_dim: int
    n_slots: int
    policy: Policy

    def __str__(self) -> str:
        p = self.policy
        return f"h{self.n_heads}x{self.n_kv_heads}-q{self.q_len}-d{self.head_dim}-s{self.n_slots}-{astuple(p)}"


SHAPES = [
    Case(2, 2, 64, 64, 4, KEEP),
    Case(2, 1, 75, 64, 6, KEEP),  # a ragged last block, and slots without blocks
    Case(3, 1, 29, 128, 4, replace(KEEP, page_size=8)),  # blocks smaller than a tile
    Case(2, 1, 150, 80, 2, replace(KEEP, page_size=100, sink=1)),  # and larger, of no whole tiles
    Case(2, 2, 40, 256, 4, replace(KEEP, page_size=10)),
    Case(2, 1, 70, 64, 3, replace(KEEP, page_size=32, sink=1)),
    Case(2, 1, 20, 48, 1, replace(KEEP, page_size=64, sink=0)),  # one block
    Case(2, 1, 1, 16, 3, replace(KEEP, page_size=8)),  # one position
]
CHOICES = [
    replace(KEEP, n_pages=0),
    replace(KEEP, n_active=0),
    replace(KEEP, n_pages=0, n_active=0),
    replace(KEEP, sink=0),
    replace(KEEP, sink=99, n_pages=3),
    replace(KEEP, n_pages=2**20, n_active=2**20),
]


class Inputs:
    def __init__(self, case: Case, dtype: type, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        heads = (case.n_heads, case.n_kv_heads, case.n_kv_heads)
        self.q, self.k, self.v = (normal(rng, dtype, 1, n, case.q_len, case.head_dim) for n in heads)
        self.q *= dtype(3)  # weights far from equal
        self.pattern = (rng.random((case.n_heads, case.n_slots, case.n_slots)) < 0.4).astype(np.uint8)

    def run(self, policy: Policy, scale: float = 0.0) -> PatternResult:
        pattern = tensor(self.pattern)
        out, stats = launch_pattern.pattern_attention(
            *(tensor(x) for x in (self.q, self.k, self.v)), policy, pattern, scale=scale
        )  # fmt: skip
        return PatternResult(out.numpy(), pattern.numpy(), stats.numpy())

    def define(self, policy: Policy, scale: float = 0.0) -> PatternResult:
        return pattern_attention(self.q, self.k, self.v, policy, self.pattern, scale=scale)


def assert_close(found: PatternResult, wanted: PatternResult, tolerance: float) -> None:
    assert found.out.dtype == wanted.out.dtype
    np.testing.assert_allclose(found.out.astype(np.float32), wanted.out.astype(np.float32), rtol=0, atol=tolerance)
    np.testing.assert_array_equal(found.pattern, wanted.pattern)
    np.testing.assert_array_equal(found.stats, wanted.stats)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_mode_matches_the_definition(shape, mode, dtype):
    x, policy = Inputs(shape, dtype), replace(shape.policy, mode=mode)
    assert_close(x.run(policy), x.define(policy), TOLERANCE[dtype])


@pytest.mark.parametrize("policy", CHOICES, ids=lambda p: str(astuple(p)))
def test_regions_that_keep_nothing_or_everything(policy):
    x = Inputs(replace(SHAPES[1], n_heads=1), np.float32)
    assert_close(x.run(policy), x.define(policy), TOLERANCE[np.float32])


@pytest.mark.parametrize("n_rep", range(1, 9))
def test_every_group_of_heads(n_rep):
    x, policy = Inputs(Case(n_rep, 1, 20, 32, 2, KEEP), np.float32), replace(KEEP, mode=REUSE_PAGES)
    assert_close(x.run(policy, 0.3), x.define(policy, 0.3), TOLERANCE[np.float32])


def test_equal_means_choose_the_first_blocks():
    """With queries of zeros every weight is 1 / q_len, whose sums over whole blocks of powers of two are exact."""
    x = Inputs(Case(2, 1, 64, 32, 4, KEEP), np.float32)
    x.q[:] = 0
    found = x.run(KEEP).pattern
    np.testing.assert_array_equal(found, np.broadcast_to(np.array([1, 0, 1, 1], np.uint8), found.shape))


def test_a_full_pattern_equals_dense():
    x = Inputs(SHAPES[1], np.float32)
    x.pattern[:] = 1
    dense = launch.dense_attention(
        *(tensor(each) for each in (x.q, x.k, x.v)), launch.Cache(*[tensor(x.k[:, :, :0])] * 2), 0, 0, 2**40
    )  # fmt: skip
    np.testing.assert_allclose(
        x.run(replace(KEEP, mode=REUSE_PAGES)).out, dense.numpy(), rtol=0, atol=TOLERANCE[np.float32]
    )


def test_an_empty_pattern_gives_zeros():
    x = Inputs(SHAPES[1], np.float32)
    x.pattern[:] = 0
    x.k[:] = x.v[:] = np.nan
    found = x.run(replace(KEEP, mode=REUSE_PAGES))
    assert not found.out.any() and found.stats[1] == 0


def test_what_is_left_out_has_no_influence():
    case = replace(SHAPES[0], n_heads=1, n_kv_heads=1)
    x, policy = Inputs(case, np.float32), replace(KEEP, mode=REUSE_PAGES)
    x.pattern[:] = 0
    x.pattern[0, :, [1, 3]] = 1
    before = x.run(policy).out
    for block in (0, 2):
        x.k[:, :, 16 * block : 16 * block + 16] = x.v[:, :, 16 * block : 16 * block + 16] = np.nan
    np.testing.assert_array_equal(x.run(policy).out, before)


def test_the_pattern_of_one_step_serves_the_next():
    x = Inputs(SHAPES[1], np.float32)
    x.pattern = x.run(KEEP).pattern
    policy = replace(KEEP, mode=REUSE_PAGES)
    assert_close(x.run(policy), x.define(policy), TOLERANCE[np.float32])
    assert x.run(policy).stats[1] == x.pattern.sum()
