"""Credit for tokens that stay the best guess."""

import msgspec
import numpy as np
import pytest

from dlm_edge.runtime.samplers import credit
from dlm_edge.runtime.scores import Sampling, ScoreReducer
from tests.runtime.samplers.geometries import canvases, everywhere
from tests.runtime.samplers.given import select, state_of

VOCAB, MASK = 12, 11


def scores_over(rows, sampling=None):
    reducer = ScoreReducer(MASK, sampling or Sampling())
    return reducer.reduce(np.asarray(rows, np.float32), 10 + np.arange(len(rows)), 0)


def plain(rows, history, options):
    """The whole table of credits, as the definition has it; `history`: rows of the selections before."""
    table = np.zeros((len(rows), VOCAB))
    for earlier in [*history, rows]:
        logits = np.asarray(earlier, np.float64).copy()
        logits[:, MASK] = -np.inf
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        table *= options.decay
        top = p.argmax(axis=1)
        table[np.arange(len(rows)), top] += p.max(axis=1) ** options.exponent
    fused = np.log(p, where=p > 0, out=np.full(p.shape, -np.inf)) + options.strength * np.log1p(table)
    q = np.exp(fused - fused.max(axis=1, keepdims=True))
    q /= q.sum(axis=1, keepdims=True)
    return q.argmax(axis=1), q.max(axis=1)


@pytest.mark.parametrize("strength", [0.0, 0.7, 1.0])
def test_it_is_the_whole_table(strength):
    rng, moved = np.random.default_rng(1), 0
    options = credit.Options(threshold=2.0, strength=strength, decay=0.9)
    for _ in range(40):
        history = [rng.normal(size=(5, VOCAB)) * 2 for _ in range(4)]
        memory = None
        for step, rows in enumerate(history):
            ids, confidence = plain(rows, history[:step], options)
            scores, state = scores_over(rows), state_of(5, step=step, memory=memory)
            bound = float(np.sort(confidence)[1:3].mean())  # between the second and the third of five
            found = credit.select(scores, state, msgspec.structs.replace(options, threshold=bound))
            assert found.positions.tolist() == (10 + np.flatnonzero(confidence > bound)).tolist()
            assert found.ids.tolist() == ids[confidence > bound].tolist()
            one = credit.select(scores, state, options)
            assert (one.positions.tolist(), one.ids.tolist()) == (
                [10 + confidence.argmax()],
                [ids[confidence.argmax()]],
            )
            memory, moved = one.memory, moved + int((ids != scores.ids).sum())
    assert (moved > 0) == (strength > 0)


def test_a_slot_remembers_only_what_was_its_best_guess():
    memory = None
    for step in range(6):
        rows = np.random.default_rng(step).normal(size=(3, VOCAB))
        memory = credit.select(scores_over(rows), state_of(3, step=step, memory=memory), credit.Options()).memory
        assert set(memory) == {10, 11, 12} and all(len(of_slot) <= step + 1 for of_slot in memory.values())
        assert all(MASK not in of_slot for of_slot in memory.values())


def test_a_drawn_token_is_kept():
    sampling = Sampling(temperature=3.0, seed=4)
    rows = np.random.default_rng(2).normal(size=(6, VOCAB)) * 3
    scores = scores_over(rows, sampling)
    assert (scores.confidence < scores.top1_prob).any()
    memory = {10 + i: {int(np.argmax(rows[i][:MASK])): 5.0} for i in range(6)}
    chosen = select("credit", scores, state_of(6, step=1, memory=memory, sampling=sampling), threshold=0.0)
    assert chosen == list(zip(scores.positions.tolist(), scores.ids.tolist(), strict=True))


def test_ties_go_to_the_left_and_to_the_lower_id():
    scores = scores_over(np.zeros((2, VOCAB)))
    assert select("credit", scores, state_of(2)) == [(10, 0)]
    state = state_of(2, step=1, memory={10: {3: 1.0, 5: 1.0}, 11: {3: 1.0, 5: 1.0}})
    assert select("credit", scores, state, decay=1.0) == [(10, 3)]


@everywhere
@pytest.mark.parametrize("threshold", [0.6, 1.5])
def test_no_strength_is_threshold(family, length, cache, threshold):
    found = canvases(family, length, cache, "credit", threshold=threshold, strength=0)
    other, options = ("threshold", {"threshold": threshold}) if threshold < 1 else ("static", {})
    assert found == canvases(family, length, cache, other, **options)


def test_credit_saves_steps():
    saved = [
        len(canvases("full", n, "none", s, threshold=0.6)[1]) for s in ("threshold", "credit") for n in (1, 5, 7, 9)
    ]
    assert sum(saved[4:]) < sum(saved[:4])
