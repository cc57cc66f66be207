"""Bold commits, and taking back what does not hold given everything else."""

import numpy as np
import pytest

from dlm_edge.runtime.samplers import SAMPLERS
from dlm_edge.runtime.samplers.contract import LeftOut
from tests.runtime.decoding import decode, prompt_of
from tests.runtime.samplers.given import FIRST, scores_of, state_of
from tests.runtime.samplers.test_edit import CASES
from tests.runtime.toy import EOS, MASK, ToyModel, make_conventions

BLOCK = 8
WINO = SAMPLERS["wino"]


def chosen(confidence, *, step=1, before=30, left_out=None, **options):
    """(committed, hidden) offsets; `left_out` lists probabilities of tokens that stand behind the masks."""
    n = len(confidence)
    known = LeftOut(FIRST + n + np.arange(len(left_out or ())), np.array(left_out or ()))
    state = state_of(n, step=step, memory=before, span=(FIRST, FIRST + 100), left_out=lambda: known)
    commits = WINO.select(scores_of(confidence), state, WINO.options(**options))
    assert commits.memory == len(commits.positions)
    return (commits.positions - FIRST).tolist(), (commits.hidden - FIRST).tolist()


def test_how_many_are_committed():
    assert chosen([0.1, 0.5, 0.5]) == ([1], [])
    assert chosen([0.9, 0.7, 0.6, 0.59])[0] == [0, 1, 2]
    assert chosen(np.linspace(0.7, 0.9, 10))[0] == [3, 4, 5, 6, 7, 8, 9]  # 0.7 of 10
    assert chosen(np.linspace(0.7, 0.9, 6))[0] == [1, 2, 3, 4, 5]  # at least five may be
    assert len(chosen(np.full(100, 0.9))[0]) == 20 and chosen(np.full(100, 0.9))[0][0] == 0


def test_what_is_taken_back():
    two = [0.9, 0.9]
    assert chosen(two, left_out=[0.95, 0.8, 0.1, 0.9])[1] == [3, 4]
    assert chosen(two, left_out=[0.5, 0.8, 0.1, 0.2], before=3)[1] == [4, 5]  # fewer than three, the unlikeliest
    assert chosen(two, left_out=[0.5] * 4, before=3)[1] == [2, 3]  # equals go left
    assert chosen(two, left_out=[0.1], before=1)[1] == []
    assert chosen(two, left_out=[0.1], step=0)[1] == []
    assert chosen([0.9, 0.2], left_out=[0.1])[1] == []  # only where more than one is committed
    assert chosen(two, left_out=[0.1], threshold_back=0.0)[1] == []


@pytest.mark.parametrize(("family", "length", "cache"), CASES)
def test_without_revoking_it_is_threshold(family, length, cache):
    conventions = make_conventions(family, BLOCK, 4 if length == 5 else BLOCK)

    def trace(sampler, **options):
        seen = {}
        tokens, stats = decode(
            conventions, prompt_of(length), sampler=sampler, cache=cache, threshold=0.3, stop_ids=(), **options,
            on_step=lambda p: seen.update({p.step: p.canvas.ids.tolist()}),
        )  # fmt: skip
        return tokens, stats.steps, seen

    assert trace("wino", threshold_back=0.0, min_commit=100, max_commit=100) == trace("threshold")


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(("family", "length", "cache"), CASES)
def test_it_takes_back_and_ends_within_the_masks(family, length, cache, batched):
    conventions, taken_back, steps = make_conventions(family, BLOCK, 4 if length == 5 else BLOCK), 0, {}
    fixed, before = ({2: 7, 11: 8} if family.startswith("full") else {}), {}

    def watch(progress):
        nonlocal taken_back
        canvas, start = progress.canvas, progress.block_end - BLOCK
        now = {int(p): int(canvas.ids[p]) for p in np.flatnonzero(~canvas.is_masked)}
        gone = [p for p in before if p not in now]
        assert all(now[p] == before[p] for p in before if p not in gone)
        assert all(p >= start and not canvas.is_given[p] for p in gone) and MASK not in now.values()
        taken_back += len(gone)
        steps[progress.block] = steps.get(progress.block, -1) + 1  # the last call of a block is no step
        before.clear()
        before.update(now)

    model = ToyModel(3, forbid=[EOS], sharpness=20.0)
    model.batches_copies = batched
    tokens, stats = decode(
        conventions, prompt_of(length), model=model, sampler="wino", cache=cache, on_step=watch, fixed=fixed,
        threshold=0.2, threshold_back=0.99,
    )  # fmt: skip
    assert len(tokens) == 19 and [tokens[at] for at in fixed] == list(fixed.values())
    assert max(steps.values()) <= BLOCK and stats.steps == sum(steps.values())
    assert taken_back > 0 or length == 5  # sub-blocks of four are full too soon


@pytest.mark.parametrize("batched", [True, False])
def test_what_taking_back_costs(batched):
    """One pass for all tokens of the block where texts are batched, and only in steps that may take something back."""
    copies = []

    class Watched(ToyModel):
        batches_copies = batched

        def run_copies(self, given, *args):
            copies.append(len(given))
            return super().run_copies(given, *args)

    model, settings = Watched(3, forbid=[EOS], sharpness=20.0), {"threshold": 0.2, "gen_len": BLOCK}
    decode_with = {"model": model, "sampler": "wino"} | settings
    _, stats = decode(make_conventions("full", BLOCK), prompt_of(4), threshold_back=0.99, **decode_with)
    assert 0 < len(copies) < stats.steps - 1 and all(2 <= n < BLOCK for n in copies)
    assert stats.forward_passes == stats.steps + (len(copies) if batched else sum(copies))
    copies.clear()
    decode(make_conventions("full", BLOCK), prompt_of(4), threshold_back=0.0, **decode_with)
    assert not copies


@pytest.mark.parametrize("at_once", [1, 10, 25, 1000])
def test_left_out_probabilities_are_those_of_texts_with_one_more_mask(monkeypatch, at_once):
    """Against one run per token; in whatever portions they are computed."""
    monkeypatch.setattr("dlm_edge.runtime.predicting.AT_ONCE", at_once)
    conventions, model, checked = make_conventions("full", BLOCK), ToyModel(4, sharpness=20.0), 0

    class Spy:
        def __call__(self, scores, state, options):
            nonlocal checked
            left_out = state.left_out()
            for at, probability in zip(left_out.positions, left_out.probability, strict=True):
                ids = state.canvas.ids.copy()
                token, ids[at] = ids[at], MASK
                other = ToyModel(4, sharpness=20.0)
                other.reset(len(ids))
                row = other.run(ids, 0, 0, 1 << 40, [at])[0].astype(np.float64)
                weights = np.exp(row - row.max())
                weights[MASK] = 0
                assert probability == pytest.approx(weights[token] / weights.sum(), rel=1e-5)
                checked += 1
            return WINO.select(scores, state, options)

    from dataclasses import replace

    monkeypatch.setitem(SAMPLERS, "wino", replace(WINO, select=Spy()))
    decode(conventions, prompt_of(5), model=model, sampler="wino", threshold=0.2, stop_ids=())
    assert checked > 20


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_every_step_counts_for_the_refresh(cache):
    model, settings = ToyModel(3, forbid=[EOS], sharpness=20.0), {"threshold": 0.2, "threshold_back": 0.99}
    _, stats = decode(
        make_conventions("full", 2 * BLOCK), prompt_of(4), model=model, sampler="wino", cache=cache, refresh_every=3,
        gen_len=2 * BLOCK, **settings,
    )  # fmt: skip
    whole = 4 + 2 * BLOCK
    assert stats.steps > 3
    assert [run[:3] for run in model.runs].count((0, whole, 0)) == -(-stats.steps // 3)
