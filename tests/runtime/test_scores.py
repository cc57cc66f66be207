"""The reduction of logits against a plain softmax, the order of ties, and drawing."""

import numpy as np
import pytest

from dlm_edge.errors import JobError
from dlm_edge.kernels import library
from dlm_edge.runtime.samplers.contract import Commits
from dlm_edge.runtime.scores import Sampling, ScoreReducer

MASK = 3
# See tests/kernels/test_score_rows.py.
PROBABILITY_ERROR, ENTROPY_ERROR = 1e-7, 1.2e-6


@pytest.fixture(autouse=True, params=["as installed", "no library"])
def installed(request, monkeypatch):
    if request.param == "no library":
        monkeypatch.setattr(library, "_in_use", lambda: None)


def reduce(rows, sampling=None, positions=None, step=0):
    rows = np.asarray(rows, np.float32)
    positions = np.arange(len(rows)) if positions is None else np.asarray(positions)
    return ScoreReducer(MASK, sampling or Sampling()).reduce(list(rows), positions, step)


def test_against_a_plain_softmax():
    rows = np.random.default_rng(0).normal(0, 4, (50, 5000)).astype(np.float32)
    rows[:, MASK] += 100  # the mask id would win everywhere
    found = reduce(rows)
    exact = rows.astype(np.float64)
    exact[:, MASK] = -np.inf
    weights = np.exp(exact - exact.max(axis=1, keepdims=True))
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    ordered = np.sort(probabilities, axis=1)
    np.testing.assert_array_equal(found.ids, exact.argmax(axis=1))
    np.testing.assert_allclose(found.top1_prob, ordered[:, -1], rtol=0, atol=PROBABILITY_ERROR)
    np.testing.assert_allclose(found.top2_prob, ordered[:, -2], rtol=0, atol=PROBABILITY_ERROR)
    np.testing.assert_array_equal(found.confidence, found.top1_prob)
    logs = np.log(probabilities, where=probabilities > 0, out=np.zeros_like(probabilities))
    np.testing.assert_allclose(found.entropy, -(probabilities * logs).sum(axis=1), rtol=0, atol=ENTROPY_ERROR)


def test_rows_are_not_written_to():
    rows = np.random.default_rng(1).normal(0, 1, (4, 20)).astype(np.float32)
    before = rows.copy()
    reduce(rows, Sampling(temperature=1.0))
    np.testing.assert_array_equal(rows, before)


def test_equal_logits_give_the_lowest_id():
    row = np.zeros(10)
    row[[5, 7]] = 2.0
    found = reduce([row, np.zeros(10)])
    assert found.ids.tolist() == [5, 0]
    assert found.top1_prob[0] == found.top2_prob[0]


def test_minus_infinity_is_a_ban_and_not_an_error():
    row = np.full(8, -np.inf)
    row[6] = -1e30
    found = reduce([row])
    assert found.ids[0] == 6 and found.confidence[0] == 1 and found.entropy[0] == 0


@pytest.mark.parametrize("row", [[0, np.nan, 0, 0], [0, np.inf, 0, 0], [-np.inf] * 4, [-np.inf] * 3 + [5.0]])
def test_unusable_rows_raise(row):
    with pytest.raises(JobError) as error:
        reduce([[0, 1, 2, 0], row], positions=[40, 41], step=7)
    assert error.value.code == "E-NUM" and "position 41 at step 7" in error.value.message


def test_stop_ids_are_not_chosen_before_the_first_stop():
    """Positions in any order: each row keeps its place."""
    rows = np.random.default_rng(3).normal(0, 1, (5, 30)).astype(np.float32)
    rows[:, [7, 11]] += 20  # the stop ids would win everywhere
    positions = np.array([14, 9, 10, 2, 9])
    reducer = ScoreReducer(MASK, Sampling(), stop_ids=[11, 7], first_stop=10)
    found = reducer.reduce(list(rows), positions, 0)
    for i, position in enumerate(positions):
        banned = [MASK, 7, 11] if position < 10 else [MASK]
        exact = np.delete(rows[i].astype(np.float64), banned)
        p = np.exp(exact - exact.max()) / np.exp(exact - exact.max()).sum()
        assert found.ids[i] == np.delete(np.arange(30), banned)[exact.argmax()]
        assert found.top1_prob[i] == pytest.approx(p.max(), abs=PROBABILITY_ERROR)
        for token in (0, int(found.ids[i])):
            exact_p = np.exp(np.float64(rows[i, token]) - exact.max()) * p.max()
            assert reducer.probability(rows[i], int(position), token, 0) == pytest.approx(
                exact_p, abs=PROBABILITY_ERROR
            )


def test_columns_are_not_shared():
    """A constraint writes into some of them."""
    found = reduce([[1, 2, 3, 0], [3, 2, 1, 0]])
    columns = [found.ids, found.confidence, found.top1_prob, found.top2_prob, found.entropy]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(columns) for b in columns[:i])


def test_drawing_follows_the_probabilities():
    row = np.log([0.5, 0.3, 0.15, 1e-9, 0.05]).astype(np.float32)
    draws = [reduce([row], Sampling(temperature=1.0, seed=9), step=s).ids[0] for s in range(3000)]
    share = np.bincount(draws, minlength=5) / 3000
    np.testing.assert_allclose(share, [0.5, 0.3, 0.15, 0, 0.05], atol=0.03)  # three standard deviations


def test_top_k_and_top_p_cut():
    row = np.log([0.5, 0.3, 0.15, 1e-9, 0.05]).astype(np.float32)
    for setting, allowed in (
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.6}, {0, 1}),
    ):
        sampling = Sampling(temperature=5.0, seed=2, **setting) if "top_k" in setting else Sampling(
            temperature=1.0, seed=2, **setting
        )  # fmt: skip
        assert {int(reduce([row], sampling, step=s).ids[0]) for s in range(200)} == allowed


def test_confidence_of_a_drawn_id_is_its_plain_probability():
    row = np.log([0.5, 0.3, 0.2, 1e-9]).astype(np.float32)
    for step in range(20):
        found = reduce([row], Sampling(temperature=3.0, top_k=2, seed=4), step=step)
        assert found.confidence[0] == pytest.approx([0.5, 0.3][found.ids[0]], abs=1e-6)


def test_mask_id_is_never_drawn():
    row = np.zeros(5, np.float32)
    row[MASK] = 50
    assert MASK not in {int(reduce([row], Sampling(temperature=2.0), step=s).ids[0]) for s in range(200)}


def as_pairs(commits: Commits):
    return list(zip(commits.positions.tolist(), commits.ids.tolist(), strict=True))
