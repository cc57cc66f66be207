"""Under a constraint any order and any parallelism ends in a valid text, and the scores are over what is allowed."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dlm_edge.errors import InternalError, JobError, UsageProblem
from dlm_edge.runtime.blocks import Canvas
from dlm_edge.runtime.constraints.automaton import matches, run
from dlm_edge.runtime.constraints.constraint import AfterSpace, Constraint
from dlm_edge.runtime.constraints.reducer import ConstrainedReducer, certainty, tempered
from dlm_edge.runtime.constraints.regex import compile_regex
from dlm_edge.runtime.constraints.vocabulary import Vocabulary
from dlm_edge.runtime.scores import Sampling, ScoreReducer
from tests.runtime.constraints.texts import STOPS, TINY

MASK, VOCAB, PROMPT = 9, 12, [2, 3, 4]  # ids 10 and 11 are no tokens
PATTERNS = ["(ab)*c?", "a{3,9}b*", "[abc]*cc", "(a|b)+c(ab){2}", "(ba?){1,4}", "c|aab+", "(a|b){0,40}aa"]


def opened(pattern, gen_len, *, block=8, drops_space=False, **sampling):
    tokens = TINY | ({5: b" a"} if drops_space else {})
    constraint = Constraint(compile_regex(pattern), Vocabulary(tokens, drops_leading_space=drops_space), STOPS)
    constraint.check_fits(gen_len)
    end = -(-(len(PROMPT) + gen_len) // block) * block
    canvas = Canvas(PROMPT, gen_len, end, MASK)
    return ConstrainedReducer(constraint, ScoreReducer(MASK, Sampling(**sampling)), canvas), canvas


def random_rows(rng, count):
    rows = rng.normal(0, rng.choice([0.1, 3, 40, 300]), (count, VOCAB)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.2] = -np.inf
    rows[:, 11] = 0  # a likely id that is no token
    return list(rows)


def filled(reducer, canvas, rng, *, block=8):
    """Blocks in order, in each a random part of the slots at every step."""
    step = 0
    for start in range(0, len(canvas.ids), block):
        while (positions := canvas.masked(start, start + block)).size:
            scores = reducer.reduce(random_rows(rng, len(positions)), positions, step)
            chosen = np.sort(rng.choice(len(positions), rng.integers(1, len(positions) + 1), replace=False))
            canvas.commit(scores.positions[chosen], scores.ids[chosen])
            step += 1
    return b"".join(TINY[i] for i in canvas.final_tokens(STOPS)[0]).decode()


@pytest.mark.parametrize("seed", range(200))
def test_any_order_and_any_parallelism_ends_valid(seed):
    rng = np.random.default_rng(seed)
    pattern = PATTERNS[seed % len(PATTERNS)]
    drawn = {"temperature": 1.0, "seed": seed, "top_k": 2, "top_p": 0.5} if seed % 2 else {}
    reducer, canvas = opened(pattern, 8 + seed % 17, **drawn)
    reducer.constraint.paths.max_width = 2 if seed % 3 == 0 else 512
    text = filled(reducer, canvas, rng)
    assert re.fullmatch(pattern, text), text
    reducer.constraint.check_text(text)


def test_the_window_may_reach_further_in_one_step_than_in_the_next():
    reducer, canvas = opened("(a|b)+c(ab){2}", 20)
    rng = np.random.default_rng(0)
    reducer.reduce(random_rows(rng, 20), np.arange(3, 23), 0)
    assert re.fullmatch("(a|b)+c(ab){2}", filled(reducer, canvas, rng))


def test_a_forced_token_is_certain_and_another_one_counts_among_what_is_allowed():
    reducer, canvas = opened("a(b|c)", 2)
    rows = [np.zeros(VOCAB, np.float32), np.log(np.arange(1, VOCAB + 1, dtype=np.float32))]
    scores = reducer.reduce(rows, np.array([3, 4]), 0)
    assert scores.ids.tolist() in ([2, 6], [4, 0])  # a c, or ab and the end
    canvas.commit(np.array([4]), np.array([6]))
    scores = reducer.reduce(rows[:1], np.array([3]), 1)
    assert scores.ids[0] == 2 and scores.top1_prob[0] == 0.5  # two ids spell "a"
    canvas.commit(np.array([3]), np.array([2]))
    reducer, canvas = opened("c", 1)
    scores = reducer.reduce(rows[:1], np.array([3]), 0)
    values = (scores.ids[0], scores.confidence[0], scores.top1_prob[0], scores.top2_prob[0], scores.entropy[0])
    assert values == (6, 1.0, 1.0, 0.0, 0.0)


def test_positions_behind_the_text_are_scored_as_without_a_constraint():
    reducer, canvas = opened("c", 1)
    rows = random_rows(np.random.default_rng(0), 3)
    scores = reducer.reduce(rows, np.array([3, 4, 5]), 0)
    plain = reducer.scorer.reduce(rows, np.array([3, 4, 5]), 0)
    assert scores.ids[1:].tolist() == plain.ids[1:].tolist() and scores.ids[0] == 6
    assert scores.entropy[1:].tolist() == plain.entropy[1:].tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_rows_are_refused_as_without_a_constraint(value):
    reducer, _ = opened("a*", 4)
    rows = random_rows(np.random.default_rng(0), 2)
    rows[1][3] = value
    with pytest.raises(JobError) as caught:
        reducer.reduce(rows, np.array([3, 4]), 0)
    assert caught.value.code == "E-NUM" and "position 4" in caught.value.message


def test_the_same_seed_draws_the_same_ids_whatever_was_drawn_before():
    rows = random_rows(np.random.default_rng(1), 8)
    ids = []
    for warm_up in (0, 3):
        reducer, _ = opened("[abc]*", 8, temperature=2.0, seed=5)
        for step in range(warm_up):
            reducer.reduce(rows, np.arange(3, 11), step + 50)
        ids.append(reducer.reduce(rows, np.arange(3, 11), 7).ids.tolist())
    assert ids[0] == ids[1]


def test_too_little_room_is_refused_with_what_it_takes():
    with pytest.raises(UsageProblem, match="takes 5 tokens, and there are 4"):
        opened("c{5}", 4)
    with pytest.raises(UsageProblem, match="lacks bytes"):
        opened("x", 4)
    with pytest.raises(UsageProblem, match="no stop token"):
        Constraint(compile_regex("a"), Vocabulary(TINY), ()).check_fits(3)


def test_a_text_that_does_not_match_is_a_bug_of_ours():
    reducer, _ = opened("a*", 4)
    with pytest.raises(InternalError):
        reducer.constraint.check_text("b")


@pytest.mark.parametrize("pattern", [" ?a+", "a+", "  a"])
def test_a_leading_space_that_the_decoder_drops_is_accounted_for(pattern):
    automaton = compile_regex(pattern)
    written = AfterSpace(automaton)
    for raw in (b"a", b" a", b"  a", b"   a", b"", b" ", b"aa"):
        assert matches(written, raw) == matches(automaton, raw.removeprefix(b" ")), raw
    assert written.distance(0) == automaton.distance(automaton.start)


def test_what_top_k_and_top_p_cut_away_stays_possible():
    weights, mask = np.array([0, -1, -2, -3, -1], np.float32), np.array([1, 1, 1, 1, 0], bool)
    kept = tempered(weights, mask, Sampling(temperature=0.5, top_k=3, top_p=0.95))
    assert kept.tolist() == [0.0, -2.0, -500.0, -500.0, -500.0] and np.isfinite(kept).all()
    assert tempered(weights, mask, Sampling(temperature=2.0)).tolist() == [0.0, -0.5, -1.0, -1.5, -500.0]


def test_certainty_is_over_what_is_allowed():
    weights = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    confidence, top1, top2, entropy = certainty(weights, np.array([0, 1, 1, 0], bool), 2)
    assert [confidence, top1, top2] == pytest.approx([1 / 3, 2 / 3, 1 / 3])
    assert entropy == pytest.approx(-(1 / 3) * np.log(1 / 3) - (2 / 3) * np.log(2 / 3))


def test_no_draw_depends_on_what_was_asked_of_the_automaton_before():
    """States are numbered as they are found, and here in two orders."""
    rows = list(np.random.default_rng(3).normal(0, 1, (8, VOCAB)).astype(np.float32))
    for seed in range(8):
        ids = []
        for explored in ([], [b"bbbc", b"ba", b"aabc", b"abab"]):
            reducer, _ = opened("(a|b)+c(ab){0,3}|[abc]{2,6}", 8, temperature=3.0, seed=seed)
            for text in explored:
                run(reducer.constraint.automaton, text)
            ids.append(reducer.reduce(rows, np.arange(3, 11), 0).ids.tolist())
        assert ids[0] == ids[1]


def test_what_the_model_would_write_anyway_keeps_its_scores():
    """Slots that stay open keep the order in which the model is sure of them; one token alone is certain."""
    reducer, canvas = opened("a[abc]b", 4)
    rows = np.full((4, VOCAB), -5.0, np.float32)
    rows[[0, 1, 2, 3], [2, 3, 2, STOPS[0]]] = [1.0, 2.0, 3.0, 4.0]  # a b a and the end, but the third has to be b
    positions = canvas.masked(3, 7)
    scores, plain = reducer.reduce(list(rows), positions, 0), reducer.scorer.reduce(list(rows), positions, 0)
    assert scores.ids.tolist() == [2, 3, 3, STOPS[0]] and plain.ids.tolist() == [2, 3, 2, STOPS[0]]
    agrees = [0, 1, 3]
    assert (scores.confidence[agrees] == plain.confidence[agrees]).all()
    assert scores.confidence[2] > 0.1 > plain.confidence[2] * np.exp(-8.0)  # of b, among what is allowed there


def test_a_slot_that_can_hold_one_token_only_is_certain():
    reducer, canvas = opened("c", 2)
    rows = np.zeros((2, VOCAB), np.float32)
    rows[0, 6] = 0.5  # the model's own choice, of which it is not sure
    scores = reducer.reduce(list(rows), canvas.masked(3, 5), 0)
    plain = reducer.scorer.reduce(list(rows), canvas.masked(3, 5), 0)
    assert scores.ids[0] == plain.ids[0] == 6 and scores.confidence[0] == 1.0 > plain.confidence[0]
