"""Scores of rows: the library in every variant, and NumPy, against the definition, and the definition against softmax."""

from __future__ import annotations

import numpy as np
import pytest

from dlm_edge import kernels
from dlm_edge.kernels import library
from dlm_edge.kernels.score_rows import fast, reference
from dlm_edge.kernels.score_rows.reference import RowScores

# Largest relative difference of the library from the definition, over these rows and 360 more: 1.3e-7, portable 2.7e-7.
# Weights below exp(-87) are left out of its sums.
RELATIVE, TINY = 1e-6, 1e-30
# Largest differences from a softmax in float64, 40 rows: 1.2e-8 and 9.1e-8 of the library, 5e-10 and 6e-9 of the
# definition; NumPy's float32 is off by 2.1e-8 and 2.8e-7. The bounds leave a factor of four to the last.
PROBABILITY_ERROR, ENTROPY_ERROR = 1e-7, 1.2e-6
SIZES = [1, 2, 15, 16, 17, 1000, 1023, 1024, 1025, 3000, 151936]
KINDS = {
    "usual": lambda rng, n: rng.normal(0, 4, n),
    "flat": lambda rng, n: rng.normal(0, 1e-3, n),
    "equal": lambda rng, n: np.full(n, 7.5),
    "few values": lambda rng, n: rng.integers(-3, 3, n),
    "wide": lambda rng, n: rng.normal(0, 60, n),
    "near exp(-87)": lambda rng, n: rng.choice([0.0, -86.9, -86.99999, -87.0, -87.00001, -88.0, -104.0], n),
    "huge": lambda rng, n: rng.choice([-3.4e38, -1e38, 0.0, 3e38, 3.4e38], n),
    "denormal": lambda rng, n: rng.choice([-1e-45, 0.0, -0.0, 1e-45, 1e-39], n),
    "one stands out": lambda rng, n: np.where(np.arange(n) == n // 2, 60.0, rng.normal(0, 1, n)),
    "mostly barred": lambda rng, n: np.where(rng.random(n) < 0.9, -np.inf, rng.normal(0, 4, n)),
    "all but one barred": lambda rng, n: np.where(np.arange(n) == n * 2 // 3, -1e30, -np.inf),
}
VARIANTS = ["avx512_vnni", "avx512", "avx2", "portable"]


def choose(variant: str) -> None:
    if kernels.library_path() is None:
        pytest.skip("the native library is not built")
    kernels.set_simd(variant) or pytest.skip(f"this processor has no {variant}")


@pytest.fixture(params=VARIANTS)
def native(request):
    """The library's function, in one variant."""
    choose(request.param)
    yield native_rows
    kernels.set_simd(None)


def native_rows(rows, forbidden=()) -> RowScores:
    found = fast._native_rows(rows, forbidden)
    assert found is not None, "the library was not called"
    return found


@pytest.fixture(params=[*VARIANTS, "no library"])
def score(request, monkeypatch):
    """What the runtime calls, on every way that it can take."""
    if request.param == "no library":
        monkeypatch.setattr(library, "_in_use", lambda: None)
    else:
        choose(request.param)
    yield lambda rows, forbidden=(): fast.score_rows(rows, forbidden)
    kernels.set_simd(None)


def make_row(kind: str, size: int, seed: int = 0) -> np.ndarray:
    """Between NaN on both sides, so that reading past an end shows, and not aligned."""
    padded = np.full(size + 2 + seed % 3, np.nan, np.float32)
    row = padded[-size - 1 : -1]
    row[:] = KINDS[kind](np.random.default_rng([seed, size]), size)
    return row


def assert_same(found: RowScores, expected: RowScores) -> None:
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.largest, expected.largest)
    for name in ("top1_prob", "top2_prob", "entropy"):
        actual, wanted = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(actual, wanted, rtol=RELATIVE, atol=TINY, err_msg=name)


def softmax_scores(rows, forbidden) -> RowScores:
    """All in float64, the plain way."""
    exact = np.array(rows, np.float64)
    exact[:, list(forbidden)] = -np.inf
    weights = np.exp(exact - exact.max(1, keepdims=True))
    p = weights / weights.sum(1, keepdims=True)
    ordered = np.sort(p, 1)
    entropy = -np.sum(p * np.log(p, where=p > 0, out=np.zeros_like(p)), 1)
    return RowScores(exact.argmax(1), exact.max(1), ordered[:, -1], ordered[:, -2], entropy)


@pytest.mark.parametrize("kind", KINDS)
def test_library_is_the_definition(kind, native):
    for size in SIZES:
        rows = [make_row(kind, size, seed) for seed in range(1 if size > 3000 else 5)]
        assert_same(native(rows), reference.score_rows(rows, []))


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_is_the_definition(kind, monkeypatch):
    monkeypatch.setattr(library, "_in_use", lambda: None)
    for size in SIZES:
        rows = [make_row(kind, size, seed) for seed in range(1 if size > 3000 else 5)]
        found, expected = fast.score_rows(rows, []), reference.score_rows(rows, [])
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.largest, expected.largest)
        np.testing.assert_allclose(found.top1_prob, expected.top1_prob, rtol=0, atol=PROBABILITY_ERROR)
        np.testing.assert_allclose(found.top2_prob, expected.top2_prob, rtol=0, atol=PROBABILITY_ERROR)
        np.testing.assert_allclose(found.entropy, expected.entropy, rtol=0, atol=ENTROPY_ERROR)


def test_rows_of_all_kinds_and_sizes_with_ids_left_out(native):
    rng = np.random.default_rng(1)
    for seed in range(300):
        size = int(rng.integers(1, 5000))
        row = make_row(rng.choice(list(KINDS)), size, seed)
        forbidden = rng.integers(-5, size + 5, rng.integers(0, 6)).tolist()
        assert_same(native([row], forbidden), reference.score_rows([row], forbidden))


@pytest.mark.parametrize("size", [5000, 151936])
def test_definition_and_library_are_the_softmax(size, score):
    rows = [np.random.default_rng(seed).normal(0, 4, size).astype(np.float32) for seed in range(3)]
    exact = softmax_scores(rows, [3])
    for found in (score(rows, [3]), reference.score_rows(rows, [3])):
        np.testing.assert_array_equal(found.ids, exact.ids)
        np.testing.assert_allclose(found.top1_prob, exact.top1_prob, rtol=0, atol=PROBABILITY_ERROR)
        np.testing.assert_allclose(found.top2_prob, exact.top2_prob, rtol=0, atol=PROBABILITY_ERROR)
        np.testing.assert_allclose(found.entropy, exact.entropy, rtol=0, atol=ENTROPY_ERROR)


def test_entropy_of_a_nearly_certain_row_keeps_its_digits(native):
    row = np.array([0, 40, 0, 5], np.float32)
    small = np.exp(np.array([-40.0, -35.0, -40.0]))
    expected = np.sum(small * [41, 36, 41])  # -p log p of each, and p of what the largest lacks to 1
    np.testing.assert_allclose(native([row]).entropy, expected, rtol=1e-6)
    np.testing.assert_allclose(reference.score_rows([row], []).entropy, expected, rtol=1e-6)


def test_equal_logits_give_the_lowest_id(score):
    for first, second in ((0, 1), (3, 1030), (1023, 1024), (14, 15), (2040, 2999)):
        row = np.zeros(3000, np.float32)
        row[[first, second]] = 9.0
        found = score([row])
        assert found.ids[0] == first
        assert found.top2_prob[0] == found.top1_prob[0]
        assert score([row], [first]).ids[0] == second


@pytest.mark.parametrize("size", [17, 1025, 3000])
def test_forbidden_ids_count_as_minus_infinity(size, score):
    row = make_row("usual", size)
    for forbidden in ([0], [size - 1], [size // 2, 0, size - 1], [5, 5], list(range(size - 1))):
        wild, barred = row.copy(), row.copy()
        wild[forbidden] = np.array([1e30, np.nan, np.inf], np.float32)[np.arange(len(forbidden)) % 3]
        barred[forbidden] = -np.inf
        for found in (score([wild], forbidden), reference.score_rows([wild], forbidden)):
            for actual, expected in zip(found, score([barred]), strict=True):
                np.testing.assert_allclose(actual, expected, rtol=RELATIVE)


def test_ids_beyond_the_vocabulary_mean_nothing(score):
    rows = [make_row("usual", 1000)]
    expected = score(rows)
    for forbidden in ([1000], [-1], [-(2**40), 2**40, 1001]):
        for actual, wanted in zip(score(rows, forbidden), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("size", [1, 16, 17, 1024, 1040, 2050])
def test_nan_and_infinity_are_found_wherever_they_are(size, score):
    usual = make_row("usual", size)
    for value in (np.nan, -np.nan, np.inf):
        rows = np.tile(usual, (size, 1))
        np.fill_diagonal(rows, value)
        found = score(rows)
        np.testing.assert_array_equal(found.largest, np.full(size, value))
        assert (found.ids == -1).all() and np.isnan(found.entropy).all()


def test_nan_goes_before_infinity(score):
    for places in ([3, 2000], [2000, 3], [7, 8]):
        row = np.zeros(3000, np.float32)
        row[places] = np.nan, np.inf
        assert np.isnan(score([row]).largest[0]) and np.isnan(reference.score_rows([row], []).largest[0])


def test_no_id_left(score):
    for row, forbidden in ((np.full(1030, -np.inf), []), (np.zeros(5), [4, 0, 1, 2, 3]), (np.full(1, 2.0), [0])):
        for found in (score([np.float32(row)], forbidden), reference.score_rows([np.float32(row)], forbidden)):
            assert found.ids[0] == -1 and found.largest[0] == -np.inf and np.isnan(found.top1_prob[0])


def test_a_bad_row_leaves_the_others_alone(score):
    rows = [make_row("usual", 2000, seed) for seed in range(3)]
    expected = score(rows)
    rows[1] = rows[1].copy()
    rows[1][1999] = np.nan
    for actual, wanted in zip(score(rows), expected, strict=True):
        np.testing.assert_array_equal(actual[[0, 2]], wanted[[0, 2]])


def test_rows_may_lie_anywhere(score):
    table = np.random.default_rng(2).normal(0, 4, (6, 1500)).astype(np.float32)
    expected = score(table)
    scattered = [table[0], table[1].copy(), table.T.copy()[:, 2], table[3][::-1].copy()[::-1], *table[4:]]
    before = table.copy()
    for actual, wanted in zip(score(scattered), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)
    np.testing.assert_array_equal(table, before)
    assert [len(column) for column in score([])] == [0] * 5
