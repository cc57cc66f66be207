"""The dynamic programming against the enumeration of all fillings, on vocabularies of a few tokens."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dlm_edge.runtime.constraints.automaton import run
from dlm_edge.runtime.constraints.block_paths import (
    BlockPaths,
    Slots,
    allowed_tokens,
    best_filling,
    draw,
    drawn_filling,
    living,
)
from dlm_edge.runtime.constraints.layer import END
from dlm_edge.runtime.constraints.regex import compile_regex
from dlm_edge.runtime.constraints.token_edges import TokenEdges
from tests.runtime.constraints.texts import STOPS, TINY_SIZE, all_fillings, log_rows, tiny_vocabulary

PATTERNS = ["(ab)*c?", "a{2,6}b*", "[abc]*", "(a|b)+c(ab)?", "(ba?){1,4}", "c|aab+"]
N_SLOTS = 4


def never_kept():
    raise AssertionError("the search is not wide")


def case(seed):
    """(automaton, paths, start, slots, remaining, fillings) with some committed slots of which some filling is left."""
    rng = np.random.default_rng(seed)
    automaton = compile_regex(PATTERNS[seed % len(PATTERNS)])
    prefix = [b"", b"a", b"b"][int(rng.integers(3))]
    start = run(automaton, prefix) if run(automaton, prefix) >= 0 else automaton.start
    remaining = int(rng.integers(0, 3))

    def can_end(state):
        return state == END or automaton.distance(state) <= remaining

    open_slots = [-1] * N_SLOTS
    fillings = all_fillings(automaton, open_slots, start, can_end)
    if not fillings:
        return None
    kept = fillings[int(rng.integers(len(fillings)))]
    committed = [token if rng.random() < 0.4 else -1 for token in kept]
    rows = [row if rng.random() < 0.8 else None for row in log_rows(rng, N_SLOTS)]
    slots = Slots(np.array(committed, np.int64), rows)
    paths = BlockPaths(TokenEdges(automaton, tiny_vocabulary()), STOPS)
    return automaton, paths, start, slots, can_end, all_fillings(automaton, committed, start, can_end)


CASES = [found for seed in range(120) if (found := case(seed)) is not None]


def log_likelihood(slots, ids):
    pairs = zip(ids, slots.rows, slots.committed, strict=True)
    return sum(float(row[token]) for token, row, given in pairs if given < 0 and row is not None)


def solved(automaton, paths, start, slots, can_end):
    trellis = paths.forward(start, slots, never_kept)
    is_end = np.array([can_end(s) for s in trellis.states[-1].tolist()], bool)
    return trellis, is_end, living(trellis, is_end)


def test_there_are_cases():
    assert len(CASES) > 60


@pytest.mark.parametrize("index", range(len(CASES)))
def test_the_best_filling_is_valid_and_likeliest(index):
    automaton, paths, start, slots, can_end, fillings = CASES[index]
    trellis, is_end, _ = solved(automaton, paths, start, slots, can_end)
    found = best_filling(trellis, slots, is_end)
    assert tuple(found.tolist()) in fillings
    best = max(log_likelihood(slots, ids) for ids in fillings)
    assert log_likelihood(slots, found) == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("index", range(len(CASES)))
def test_allowed_tokens_are_those_of_the_fillings(index):
    automaton, paths, start, slots, can_end, fillings = CASES[index]
    trellis, _, alive = solved(automaton, paths, start, slots, can_end)
    for slot in np.flatnonzero(slots.committed < 0).tolist():
        found = np.flatnonzero(allowed_tokens(trellis, alive, slot, TINY_SIZE)).tolist()
        assert found == sorted({ids[slot] for ids in fillings})


@pytest.mark.parametrize("index", [0, 7, 20, 33])
def test_draws_follow_the_product_of_the_rows_given_that_the_text_is_valid(index):
    automaton, paths, start, slots, can_end, fillings = CASES[index]
    trellis, _, alive = solved(automaton, paths, start, slots, can_end)
    rng = np.random.default_rng(0)
    n_draws = 4000
    counts = Counter(tuple(drawn_filling(trellis, slots, alive, rng.random(N_SLOTS)).tolist()) for _ in range(n_draws))
    weights = np.exp([log_likelihood(slots, ids) for ids in fillings])
    expected = dict(zip(fillings, weights / weights.sum(), strict=True))
    assert set(counts) <= set(fillings)
    for ids, probability in expected.items():
        spread = np.sqrt(n_draws * probability * (1 - probability)) + 1
        assert abs(counts[ids] - n_draws * probability) < 5 * spread, ids


def test_equally_likely_tokens_give_the_lowest_ids():
    paths = BlockPaths(TokenEdges(compile_regex("[abc]{4}"), tiny_vocabulary()), STOPS)
    slots = Slots(np.full(4, -1), [np.zeros(TINY_SIZE, np.float32)] * 4)
    trellis = paths.forward(0, slots, never_kept)
    is_end = np.array([s == END or paths.edges.automaton.accepts(s) for s in trellis.states[-1].tolist()])
    found = best_filling(trellis, slots, is_end)
    assert found.tolist() == best_filling(trellis, slots, is_end).tolist()
    assert not {1, 8} & set(found.tolist())  # the higher ones of two ids for the end, and for "a"


def test_a_narrow_search_keeps_the_valid_filling_it_is_given():
    """Every likely state is a trap: only the kept filling reaches the committed last token."""
    paths = BlockPaths(TokenEdges(compile_regex("[ab]{0,12}c|b{3}cc"), tiny_vocabulary()), STOPS, max_width=1)
    row = np.full(TINY_SIZE, -30, np.float32)
    row[7] = 0  # "aab"
    slots = Slots(np.array([-1, -1, -1, 6, 6]), [row, row, row, None, None])
    kept = [3, 3, 3, 6, 6]
    trellis = paths.forward(0, slots, lambda: kept)
    is_end = np.array([paths.edges.automaton.accepts(s) for s in trellis.states[-1].tolist()])
    assert best_filling(trellis, slots, is_end).tolist() == kept


def test_a_draw_splits_its_number():
    scores = np.log([0.25, 1e-300, 0.5, 0.25])
    assert draw(scores, 0.0) == (0, 0.0)
    index, rest = draw(scores, 0.5)
    assert index == 2 and rest == pytest.approx(0.5)
    assert draw(np.array([-np.inf, 0.0, -np.inf]), 1 - 2.0**-53)[0] == 1
