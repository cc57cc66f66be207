"""The native kernel of SelectPages against the NumPy definition."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field, replace

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from dlm_edge import kernels
from dlm_edge.kernels.select_pages.reference import (
    DENSE,
    DENSE_KEEP,
    REUSE_PAGES,
    REUSE_ROWS,
    SELECT,
    SELECT_ROWS,
    Policy,
    Selection,
    select_pages,
)  # fmt: skip
from tests.kernels import native_operators as native

pytestmark = pytest.mark.skipif(kernels.library_path() is None, reason="the native library is not built")

STATE = {"new_q_last": "q_last", "new_q_stored": "q_stored"}


@dataclass(frozen=True)
class Case:
    n_heads: int
    n_kv_heads: int
    q_len: int
    head_dim: int
    start: int
    cache_len: int
    n_slots: int
    n_rows: int
    policy: Policy = field(default_factory=Policy)
    drift: float = np.inf

    def __str__(self) -> str:
        numbers = "-".join(map(str, astuple(self.policy)))
        return (
            f"h{self.n_heads}x{self.n_kv_heads}-q{self.q_len}of{self.n_rows}-d{self.head_dim}-s{self.start}"
            f"-c{self.cache_len}in{self.n_slots}-{numbers}-{self.drift}"
        )


def policy(mode: int = SELECT, **numbers: int) -> Policy:
    return Policy(mode=mode, **{"n_pages": 4, "n_active": 5, **numbers})


CASES = [
    Case(32, 8, 16, 128, 1000, 1000, 64, 16, policy()),
    Case(32, 8, 16, 128, 1000, 1000, 64, 16, policy(per_head=1)),
    Case(12, 2, 16, 96, 1000, 1000, 64, 16, policy(since_stored=1)),
    Case(8, 1, 16, 80, 1000, 1000, 64, 16, policy(one_list=1, per_head=1)),
    Case(14, 2, 32, 64, 640, 700, 128, 32, policy(page_size=8, n_pages=7, n_active=32)),
    Case(4, 4, 64, 256, 2000, 2000, 16, 64, policy(page_size=128, n_pages=2, n_active=20)),
    Case(4, 2, 33, 40, 5000, 5000, 400, 33, policy(n_pages=25)),
    # rows that drifted
    Case(4, 2, 16, 64, 500, 500, 40, 16, policy(n_active=2), drift=1.9),
    Case(4, 2, 16, 64, 500, 500, 40, 16, policy(n_active=0, per_head=1), drift=2.0),
    # nothing or everything to choose, no page forced
    Case(4, 2, 16, 64, 500, 500, 40, 16, policy(n_pages=0, n_active=0)),
    Case(4, 2, 16, 64, 500, 500, 40, 16, policy(n_pages=0)),
    Case(4, 2, 16, 64, 500, 500, 40, 16, policy(n_pages=99, n_active=99)),
    Case(4, 2, 16, 64, 500, 500, 40, 16, policy(sink=0, recent=0)),
    Case(4, 2, 16, 64, 500, 500, 40, 16, policy(sink=2**62, n_pages=1)),
    Case(4, 2, 16, 64, 200, 500, 40, 16, policy(recent=3, sink=2)),
    # no keys, no slots, more or fewer rows than state, keys behind the window
    Case(4, 2, 16, 64, 0, 0, 40, 16, policy()),
    Case(4, 2, 16, 64, 0, 0, 0, 16, policy(DENSE)),
    Case(4, 2, 20, 64, 90, 90, 40, 16, policy()),
    Case(4, 2, 9, 64, 90, 90, 40, 16, policy()),
    Case(4, 2, 9, 64, 90, 90, 40, 0, policy()),
    Case(1, 1, 1, 16, 17, 17, 2, 1, policy(n_active=1, n_pages=1)),
    *[
        replace(Case(6, 3, q_len, 64, 300, 310, 30, 16), policy=policy(mode))
        for mode in (DENSE, REUSE_ROWS, REUSE_PAGES, DENSE_KEEP, SELECT_ROWS)
        for q_len in (16, 20)
    ],
    Case(6, 3, 16, 64, 300, 310, 30, 16, policy(REUSE_PAGES, one_list=1)),
    Case(6, 3, 16, 64, 300, 310, 30, 16, policy(SELECT_ROWS, n_active=2, per_head=1), drift=2.0),
    Case(6, 3, 16, 64, 300, 310, 30, 16, policy(SELECT_ROWS, n_active=0)),
]


def make_inputs(case: Case, seed: int = 0) -> native.Arrays:
    """What holds no keys is NaN, or the largest score."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal((1, *shape)).astype(np.float32)

    n_valid = -(-case.cache_len // case.policy.page_size)
    bounds = (1, case.n_kv_heads, case.n_slots, case.head_dim)
    low, high = np.sort(rng.integers(-127, 128, (2, *bounds)).astype(np.int8), axis=0)
    page_scale = rng.random((1, case.n_kv_heads, case.n_slots)).astype(np.float32)
    masses = rng.random((1, case.n_kv_heads, case.n_slots)).astype(np.float32)
    low[:, :, n_valid:], high[:, :, n_valid:] = -127, 127
    page_scale[:, :, n_valid:], masses[:, :, n_valid:] = np.nan, np.nan
    return {
        "q": normal(case.n_heads, case.q_len, case.head_dim),
        "low": low,
        "high": high,
        "page_scale": page_scale,
        "q_last": normal(case.n_heads, case.n_rows, case.head_dim),
        "q_stored": normal(case.n_heads, case.n_rows, case.head_dim),
        "masses": masses,
        "start": np.array([case.start]),
        "cache_len": np.array([case.cache_len]),
        "policy": np.array(astuple(case.policy)),
        "drift": np.array([case.drift], np.float32),
    }


def expected_of(case: Case, inputs: native.Arrays) -> Selection:
    arrays = (inputs[name] for name in native.SELECT[:7])
    return select_pages(*arrays, case.start, case.cache_len, case.policy, case.drift)


def fresh_outputs(case: Case) -> native.Arrays:
    state = (1, case.n_heads, case.n_rows, case.head_dim)
    return {
        "active": np.full((case.n_kv_heads, case.q_len), 7, np.uint8),
        "pages": np.full((case.n_kv_heads, case.n_slots), 7, np.uint8),
        "new_q_last": np.full(state, np.nan, np.float32),
        "new_q_stored": np.full(state, np.nan, np.float32),
        "stats": np.full(4, np.nan, np.float32),
    }


def assert_equal(actual: native.Arrays, expected: Selection) -> None:
    for name, wanted in zip(native.SELECT_OUTPUTS, expected, strict=True):
        np.testing.assert_array_equal(actual[name], wanted, err_msg=name)


def run(tested, inputs: native.Arrays) -> native.Arrays:
    return dict(zip(native.SELECT_OUTPUTS, tested.run(native.SELECT_OUTPUTS, inputs), strict=True))


@pytest.fixture(scope="module")
def sessions():
    inputs = make_inputs(CASES[0])
    return {n: native.session("SelectPages", inputs, native.SELECT_OUTPUTS, threads=n) for n in (1, 2)}


@pytest.fixture
def force_simd():
    yield lambda name: kernels.set_simd(name) or pytest.skip(f"this processor has no {name}")
    kernels.set_simd(None)


@pytest.mark.parametrize("simd", native.SIMD)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference_in_place_and_not(case, simd, sessions, force_simd):
    """Exactly: scores of random inputs are far enough from each other for any order of additions."""
    force_simd(simd)
    inputs = make_inputs(case)
    expected = expected_of(case, inputs)
    for tested in sessions.values():
        assert_equal(native.run_bound(tested, inputs, {}, fresh_outputs(case)), expected)
        fresh = {name: array for name, array in fresh_outputs(case).items() if name not in STATE}
        copies = {name: array.copy() for name, array in inputs.items()}
        assert_equal(native.run_bound(tested, copies, STATE, fresh), expected)


@pytest.mark.parametrize("simd", native.SIMD)
@pytest.mark.parametrize("mode", [SELECT, REUSE_PAGES])
def test_of_equal_ones_the_lower_index_comes_first(mode, simd, sessions, force_simd):
    force_simd(simd)
    case = replace(CASES[0], policy=policy(mode, sink=0, n_pages=10))
    inputs = make_inputs(case)
    inputs["q_last"][:] = inputs["q"]
    for name in ("low", "high", "page_scale", "masses"):
        inputs[name] = np.where(np.isfinite(inputs[name]), inputs[name], 0)
        inputs[name][:, :, ::3] = inputs[name][:, :, :1]
        inputs[name][:, :, 1::3] = inputs[name][:, :, 1:2]
    assert_equal(run(sessions[2], inputs), expected_of(case, inputs))


@pytest.mark.parametrize("simd", native.SIMD)
@pytest.mark.parametrize("n_pages", [1, 10, 40, 63, 64, 200])
@pytest.mark.parametrize("poisoned", ["q", "page_scale", "masses", "q_last"])
def test_nan_and_infinity_are_ranked_as_numpy_sorts_them(poisoned, n_pages, simd, sessions, force_simd):
    force_simd(simd)
    mode = REUSE_PAGES if poisoned == "masses" else SELECT
    case = replace(CASES[0], cache_len=700, policy=policy(mode, n_pages=n_pages))
    inputs = make_inputs(case)
    flat = inputs[poisoned].reshape(-1)
    flat[::5], flat[1::7], flat[2::11] = np.nan, np.inf, -np.inf
    if poisoned == "q":
        inputs["q"] = make_inputs(case)["q"]
        inputs["q"][0, ::3, ::2] = np.nan
    with np.errstate(invalid="ignore"):
        expected = expected_of(case, inputs)
    assert_equal(run(sessions[2], inputs), expected)


BAD_INPUTS = [  # what to change, what the message must say
    pytest.param({"start": np.array([-1])}, "start is -1", id="start"),
    pytest.param({"cache_len": np.array([-1])}, "cache_len is -1, expected at most 64 pages of 16", id="negative"),
    pytest.param({"cache_len": np.array([1025])}, "cache_len is 1025, expected at most 64 pages of 16", id="too-long"),
    pytest.param({"cache_len": np.array([2**63 - 1])}, "cache_len is 9223372036854775807", id="overflow"),
    pytest.param({"policy": (8,)}, r"policy has shape \[8\], expected \[9\]", id="eight-numbers"),
    pytest.param({"policy": Policy(mode=6)}, "mode 6, expected 0 to 5", id="mode"),
    pytest.param({"policy": Policy(n_pages=-1)}, "n_pages -1, expected at least 0", id="n-pages"),
    pytest.param({"policy": Policy(n_active=-1)}, "n_active -1, expected at least 0", id="n-active"),
    pytest.param({"policy": Policy(sink=-1)}, "sink -1", id="sink"),
    pytest.param({"policy": Policy(recent=-1)}, "recent -1", id="recent"),
    pytest.param({"policy": Policy(one_list=2)}, "one_list 2, expected 0 to 1", id="flag"),
    pytest.param({"policy": Policy(page_size=0)}, "page_size 0, expected at least 1", id="page-size"),
    pytest.param({"low": (1, 5, 64, 128), "high": (1, 5, 64, 128)}, "q has 32 heads and low has 5", id="heads"),
    pytest.param({"high": (1, 8, 64, 127)}, r"high has shape \[1, 8, 64, 127\]", id="high"),
    pytest.param({"page_scale": (1, 8, 63)}, "page_scale has shape", id="page-scale"),
    pytest.param({"masses": (1, 7, 64)}, "masses has shape", id="masses"),
    pytest.param({"q_last": (1, 32, 16, 64)}, "q_last has shape", id="q-last"),
    pytest.param({"q_stored": (1, 32, 15, 128)}, "q_stored has shape", id="q-stored"),
    pytest.param({"q": (1, 32, 0, 128)}, "q has shape", id="no-queries"),
    pytest.param({"drift": (2,)}, r"drift has shape \[2\], expected \[1\]", id="drift"),
]


@pytest.mark.parametrize(("change", "message"), BAD_INPUTS)
def test_bad_inputs_are_refused_by_name(change, message, sessions):
    inputs = make_inputs(CASES[0])
    for name, value in change.items():
        if isinstance(value, Policy):
            value = np.array(astuple(value))
        inputs[name] = np.zeros(value, inputs[name].dtype) if isinstance(value, tuple) else value
    with pytest.raises(InvalidArgument, match=f"SelectPages: .*{message}"):
        sessions[1].run(None, inputs)
