"""What every sampler in the table promises, on random and degenerate toy models: a new one is covered by being there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm_edge.errors import JobError, UsageProblem
from dlm_edge.runtime.denoise import denoise, denoise_in_turns
from dlm_edge.runtime.samplers import SAMPLERS
from dlm_edge.runtime.scores import Sampling
from tests.runtime.decoding import prompt_of, settings_of
from tests.runtime.samplers.cases import (
    BLOCK,
    CACHES,
    CASES,
    NO_END,
    SERVED,
    cases,
    decode,
    examples,
    families_of,
    requests_of,
)
from tests.runtime.samplers.claims import CLAIMS, claims_of
from tests.runtime.samplers.given import FIRST, scores_of, state_of, threshold_filter
from tests.runtime.samplers.scorers import Echo, Scorer, guide_of
from tests.runtime.toy import EOS, FAMILIES, MASK, VOCAB, make_conventions


def test_claims_are_of_samplers_that_exist():
    assert set(CLAIMS) <= set(SAMPLERS)


class Watch:
    """Sees every canvas: what was given and what is committed stays, something is committed each time, inside the block."""

    def __init__(self, case):
        self.needs, self.given = SAMPLERS[case.sampler].needs, dict(enumerate(case.prompt))
        self.given |= {len(case.prompt) + offset: token for offset, token in case.fixed.items()}
        self.before, self.step, self.steps_in_block, self.n_masked = dict(self.given), 0, {}, 0

    def __call__(self, progress):
        canvas = progress.canvas
        now = {p: int(canvas.ids[p]) for p in np.flatnonzero(~canvas.is_masked).tolist()}
        assert self.given.items() <= now.items()
        assert all(0 <= token < VOCAB and token != MASK for token in now.values())
        assert (canvas.ids[canvas.is_masked] == MASK).all()
        if not self.needs.needs_whole_text:
            assert all(p < progress.block_end for p in now.keys() - self.before.keys())
        if not self.needs.can_edit:
            assert self.before.items() < now.items()
        assert progress.step == self.step + 1 or self.needs.can_edit
        self.before, self.step, self.n_masked = now, progress.step, len(canvas.ids) - len(self.given)
        self.steps_in_block[progress.block] = self.steps_in_block.get(progress.block, 0) + 1


@pytest.mark.parametrize(("sampler", "family"), CASES)
def test_progress_safety_and_geometry(sampler, family):
    @examples(10)
    @given(case=cases(sampler, [family], forbid=NO_END))
    def check(case):
        watch = Watch(case)
        tokens, stats = case.decode(on_step=watch)
        assert len(tokens) == case.gen_len and stats.stop_reason == "length"
        if not SAMPLERS[sampler].needs.can_edit:
            assert stats.steps <= watch.n_masked
            return
        bound = BLOCK * case.most_steps(BLOCK) + 1  # as many sub-blocks as slots, and the watch at the block's end
        assert max(watch.steps_in_block.values()) <= bound

    check()


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if claims_of(name).as_static])
def test_the_limit_is_static(sampler):
    @examples(30)
    @given(case=cases(sampler, options=claims_of(sampler).as_static))
    def check(case):
        tokens, stats = case.decode()
        expected, plain = case.decode(sampler="static")
        assert tokens == expected
        assert stats.steps == plain.steps or SAMPLERS[sampler].needs.can_edit

    check()


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if claims_of(name).is_lossless])
def test_lossless_is_static_in_fewer_passes(sampler):
    saved = []

    @examples(40)
    @given(case=cases(sampler))
    def check(case):
        tokens, stats = case.decode()
        expected, plain = case.decode(sampler="static")
        assert tokens == expected and stats.steps == plain.steps
        assert stats.forward_passes <= plain.forward_passes
        saved.append(plain.forward_passes - stats.forward_passes)

    check()
    assert max(saved) > 0


def exact_families(sampler):
    """Block-causal ones. With full attention a pass over everything in each step is exact as well, but for what depends
    on how far the cache's window reaches, and for canvases other than the one that was stored."""
    needs = SAMPLERS[sampler].needs
    beside = needs.needs_left_out or needs.needs_whole_text
    return [f for f in families_of(sampler) if not (beside and f.startswith("full"))]


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if exact_families(name)])
def test_exact_caches_change_nothing(sampler):
    @examples(10)
    @given(case=cases(sampler, exact_families(sampler)))
    def check(case):
        stored = CACHES[case.conventions.attention][1:]
        found = case.decode(cache=stored[case.sampling.seed % len(stored)], refresh_every=1)
        expected = case.decode(cache="none")
        assert found[0] == expected[0] and found[1].steps == expected[1].steps

    check()


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if claims_of(name).looser])
def test_looser_options_commit_no_less(sampler):
    chosen = SAMPLERS[sampler]

    @examples(30)
    @given(
        confidence=st.lists(
            st.one_of(st.floats(0, 1, width=16), st.sampled_from([0.5, 0.9, 1.0])), min_size=1, max_size=9
        ),
        seed=st.integers(0, 99),
    )
    def check(confidence, seed):
        rng, kept = np.random.default_rng(seed), set()
        confidence = np.array(confidence)
        columns = {
            "top2_prob": np.minimum(confidence, 1 - confidence),
            "entropy": np.round(rng.exponential(size=len(confidence)), 1),
        }
        state = state_of(len(confidence), filter=threshold_filter(len(confidence), 0.4, 20.0))
        for options in claims_of(sampler).looser:
            commits = chosen.select(scores_of(confidence, **columns), state, chosen.options(**options))
            assert commits.positions.size and kept <= set(commits.positions.tolist())
            assert set(commits.positions.tolist()) <= set(range(FIRST, FIRST + len(confidence)))
            kept = set(commits.positions.tolist())

    check()


@pytest.mark.parametrize(("sampler", "family"), CASES)
def test_scores_belong_to_their_position(sampler, family):
    for length, cache in ((1, "none"), (BLOCK - 1, CACHES[make_conventions(family).attention][1]), (6, "none")):
        conventions = make_conventions(family, BLOCK, mask_id=199)
        values = claims_of(sampler).options[-1] | {"cache": cache, "stop_ids": ()}
        model = Echo(conventions.logit_shift)
        tokens, _ = decode(conventions, [100] * length, model=model, sampler=sampler, gen_len=11, **values)
        assert tokens == list(range(length, length + 11))


@pytest.mark.parametrize(("sampler", "family"), CASES)
def test_early_stop_changes_nothing_before_the_stop_id(sampler, family):
    """A sampler that leaves out what follows the end may fill what precedes it otherwise, but ends as well."""
    stopped = 0
    whole = requests_of(sampler, family, stop_ids=())
    for (tokens, stats), (all_tokens, full) in zip(requests_of(sampler, family), whole, strict=True):
        assert EOS not in tokens and stats.stop_reason == ("eos" if len(tokens) < 15 else "length")
        stopped += stats.stop_reason == "eos"
        if SAMPLERS[sampler].needs.ends_at_stop:
            continue
        assert tokens == (all_tokens[: all_tokens.index(EOS)] if EOS in all_tokens else all_tokens)
        assert stats.steps <= full.steps
    assert stopped >= 2


@pytest.mark.parametrize("sampler", SERVED)
def test_stop_ids_where_they_do_not_count(sampler):
    """In the prompt, before min_new_tokens, and right of a mask."""
    waited = []

    def watch(progress):
        canvas = progress.canvas
        written = canvas.generated(canvas.prompt_len, canvas.prompt_len + 15)
        stops = written[canvas.ids[written] == EOS]
        waiting = canvas.masked(canvas.prompt_len, canvas.prompt_len + 15)
        if stops.size and waiting.size and waiting[0] < stops[0]:
            tokens, has_ended = canvas.final_tokens((EOS,))
            assert not has_ended and len(tokens) <= waiting[0] - canvas.prompt_len
            waited.append(stops)

    for family in families_of(sampler):
        values = claims_of(sampler).options[0]
        conventions, prompt = make_conventions(family, BLOCK), [EOS, 1, EOS, 2, 3, EOS]
        tokens, stats = decode(conventions, prompt, model=Scorer(forbid=[EOS]), sampler=sampler, gen_len=9, **values)
        assert len(tokens) == 9 and stats.stop_reason == "length"
        for tokens, _ in requests_of(sampler, family, min_new_tokens=7, boost=6.0, on_step=watch):
            assert len(tokens) >= 7


@pytest.mark.parametrize(("sampler", "family"), CASES)
def test_requests_do_not_meet(sampler, family):
    """One after the other on the same model in either order, and block by block in turns: always as alone."""
    chosen, conventions = SAMPLERS[sampler], make_conventions(family, BLOCK)
    requests = []
    for i, (length, gen_len) in enumerate(((5, 14), (2, 11))):
        options = claims_of(sampler).settings | claims_of(sampler).options[i % len(claims_of(sampler).options)]
        sampling = Sampling(temperature=0.8, top_p=0.9, seed=3 + i)
        values = {"sampler": sampler, "gen_len": gen_len, "stop_ids": (), "sampling": sampling} | options
        requests.append((prompt_of(length, i), settings_of(conventions, **values)))

    def model():
        return Scorer(sharpness=12.0)

    def guide():
        return guide_of(sampler, model(), conventions)

    alone = [denoise(model(), conventions, *request, chosen, guide=guide()) for request in requests]
    shared, shared_guide = model(), guide()
    found = [denoise(shared, conventions, *requests[i], chosen, guide=shared_guide) for i in (1, 0)]
    assert [tokens for tokens, _ in found[::-1]] == [tokens for tokens, _ in alone]
    turns = [
        denoise_in_turns(model(), conventions, *request, chosen, lambda p: None, lambda: False, guide())
        for request in requests
    ]
    found, n_turns = {}, 0
    while len(found) < 2:
        for i in {0, 1} - found.keys():
            n_turns += 1
            try:
                next(turns[i])
            except StopIteration as end:
                found[i] = end.value[0]
    assert [found[0], found[1]] == [tokens for tokens, _ in alone] and n_turns >= 4


@pytest.mark.parametrize("sampler", SERVED)
def test_memory_begins_empty_with_each_block(sampler, monkeypatch):
    """And `step` with each sub-block, which memory outlives."""
    chosen, seen = SAMPLERS[sampler], []

    def select(scores, state, options):
        seen.append((state.block, state.span, state.step, state.memory))
        return chosen.select(scores, state, options)

    monkeypatch.setitem(SAMPLERS, sampler, replace(chosen, select=select))
    for family in families_of(sampler):
        decode(make_conventions(family, BLOCK, 2), prompt_of(5), model=Scorer(forbid=[EOS]), sampler=sampler)
    first, following = seen[:1], list(zip(seen, seen[1:], strict=False))
    first += [now for before, now in following if now[0] != before[0]]
    assert len(first) >= 2 and all(step == 0 and memory is None for _, _, step, memory in first)
    assert all(now[2] == 0 for before, now in following if now[1] != before[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sampler", SERVED)
def test_unusable_rows_raise_and_commit_nothing(sampler, value):
    for family in families_of(sampler):
        conventions, seen = make_conventions(family, BLOCK), []
        model = Scorer(forbid=[EOS], bad=[7], value=value, shift=conventions.logit_shift)
        values = claims_of(sampler).options[0]

        def watch(progress, seen=seen):
            seen.append(bool(progress.canvas.is_masked[7]))

        with pytest.raises(JobError) as error:
            decode(conventions, prompt_of(5), model=model, sampler=sampler, on_step=watch, **values)
        assert error.value.code == "E-NUM" and "position 7 " in error.value.message
        assert all(seen)


@pytest.mark.parametrize(("sampler", "family"), [case for case in CASES if not claims_of(case[0]).is_random])
def test_equals_go_to_the_lower_index(sampler, family):
    """All logits are equal: whatever is committed stands left of all masks, and is the lowest id."""

    def watch(progress):
        canvas = progress.canvas
        written, waiting = canvas.generated(0, progress.block_end), canvas.masked(0, progress.block_end)
        assert not written.size or not waiting.size or written.max() < waiting.min()

    for options in claims_of(sampler).options:
        if options.get("alg_temp"):
            continue
        values = options | {"on_step": watch, "stop_ids": ()}
        model = Scorer("equal")
        tokens, _ = decode(make_conventions(family, BLOCK), prompt_of(6), model=model, sampler=sampler, **values)
        assert set(tokens) == {0}


@pytest.mark.parametrize(
    ("sampler", "family"), [(name, f) for name in SAMPLERS for f in FAMILIES if (name, f) not in CASES]
)
def test_a_family_without_meaning_is_refused(sampler, family):
    with pytest.raises(UsageProblem) as error:
        decode(make_conventions(family, BLOCK), prompt_of(5), model=Scorer(), sampler=sampler)
    assert error.value.code == "E-PARAM" and sampler in error.value.message
