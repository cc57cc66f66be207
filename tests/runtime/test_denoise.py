"""The loop on the toy model: what it commits, when it stops, and that no geometry breaks it."""

import numpy as np
import pytest

from dlm_edge.errors import JobError, UsageProblem
from dlm_edge.runtime.blocks import plan_blocks
from dlm_edge.runtime.scores import Sampling, uniform
from tests.runtime.decoding import decode, prompt_of
from tests.runtime.plain import plain_static
from tests.runtime.samplers.scorers import Echo
from tests.runtime.toy import EOS, FAMILIES, MASK, VOCAB, ToyModel, make_conventions

BLOCK = 8
LENGTHS = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 28]  # 28 is three and a half blocks
CACHES = {"full": ("none", "prefix", "dual"), "block_causal": ("none", "block")}
CASES = [(family, length) for family in FAMILIES for length in LENGTHS if length or "shift" not in family]


def cases_with_caches():
    return [(f, n, c) for f, n in CASES for c in CACHES[make_conventions(f).attention]]


@pytest.mark.parametrize("sub", [BLOCK, 4, 3], ids="sub{}".format)
@pytest.mark.parametrize(("family", "length"), CASES)
def test_static_is_the_plain_loop(family, length, sub):
    conventions = make_conventions(family, BLOCK, sub)
    expected = plain_static(ToyModel(forbid=[EOS]), conventions, prompt_of(length), 19)
    assert decode(conventions, prompt_of(length), model=ToyModel(forbid=[EOS]))[0] == expected


@pytest.mark.parametrize("sampler", ["static", "threshold"])
@pytest.mark.parametrize(("family", "length", "cache"), cases_with_caches())
def test_progress_safety_and_geometry(family, length, cache, sampler):
    """Every step commits, what is committed stays, the prompt stays, and the mask id is never produced."""
    before = {}

    def watch(progress):
        canvas = progress.canvas
        placed = {p: int(canvas.ids[p]) for p in np.flatnonzero(~canvas.is_masked)}
        assert len(placed) > len(before) or progress.step == 1
        assert before.items() <= placed.items()
        assert [placed[p] for p in range(length)] == prompt_of(length)
        assert all(0 <= token < VOCAB and token != MASK for token in placed.values())
        before.update(placed)

    model = ToyModel(seed=3, forbid=[EOS])
    model.sharpness = 20.0
    tokens, stats = decode(
        make_conventions(family, BLOCK), prompt_of(length), model=model, cache=cache, sampler=sampler, on_step=watch,
        threshold=0.5,
    )  # fmt: skip
    assert len(tokens) == 19 and stats.stop_reason == "length"
    assert stats.steps <= 19 + 2 * BLOCK


@pytest.mark.parametrize(("family", "length", "cache"), cases_with_caches())
def test_threshold_above_one_is_static(family, length, cache):
    conventions = make_conventions(family, BLOCK, 4)
    static = decode(conventions, prompt_of(length), cache=cache)
    assert decode(conventions, prompt_of(length), cache=cache, sampler="threshold", threshold=1.5)[0] == static[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_lower_threshold_takes_fewer_steps(family):
    steps = [
        decode(make_conventions(family, BLOCK), prompt_of(9), sampler="threshold", threshold=t)[1].steps
        for t in (0.0, 0.3, 1.1)
    ]
    assert steps[0] < steps[1] < steps[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_block_of_one_decodes_left_to_right(family):
    order = []

    def watch(progress):
        order.append(int(np.flatnonzero(~progress.canvas.is_masked).max()))

    decode(make_conventions(family, 1), prompt_of(5), gen_len=6, on_step=watch, stop_ids=())
    assert order == [5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize(("family", "length", "cache"), cases_with_caches())
def test_scores_belong_to_their_position(family, length, cache):
    conventions = make_conventions(family, BLOCK, 4, mask_id=199)
    tokens, _ = decode(conventions, [100] * length, model=Echo(conventions.logit_shift), cache=cache, stop_ids=())
    assert tokens == list(range(length, length + 19))


@pytest.mark.parametrize(("family", "length"), CASES)
def test_early_stop_changes_nothing_before_the_stop_id(family, length):
    conventions, stopped = make_conventions(family, BLOCK), 0
    for seed in range(8):
        whole, _ = decode(conventions, prompt_of(length, seed), model=ToyModel(seed), gen_len=40, stop_ids=())
        tokens, stats = decode(conventions, prompt_of(length, seed), model=ToyModel(seed), gen_len=40)
        assert tokens == (whole[: whole.index(EOS)] if EOS in whole else whole)
        assert stats.stop_reason == ("eos" if EOS in whole else "length")
        stopped += EOS in whole
    assert stopped >= 2


def test_stop_ends_the_work_after_the_block():
    conventions = make_conventions("block", BLOCK)
    seed = next(s for s in range(50) if EOS in decode(conventions, [1], model=ToyModel(s), gen_len=7, stop_ids=())[0])
    _, stats = decode(conventions, [1], model=ToyModel(seed), gen_len=100)
    assert stats.steps == 7


@pytest.mark.parametrize("family", FAMILIES)
def test_stop_id_in_the_prompt_does_not_stop(family):
    prompt = [EOS, 1, EOS, 2, 3, EOS, 5, EOS, 6]  # its last one stands in the first generated block
    tokens, stats = decode(make_conventions(family, BLOCK), prompt, model=ToyModel(forbid=[EOS]))
    assert len(tokens) == 19 and stats.stop_reason == "length"


def test_stop_id_right_of_a_mask_waits():
    """While something left of it is masked, nothing after the mask counts as final."""
    conventions, seen = make_conventions("full", BLOCK), []

    def watch(progress):
        ids, masked = progress.canvas.ids, progress.canvas.is_masked
        waiting = bool(masked[: int(np.flatnonzero(ids == EOS)[0])].any()) if EOS in ids else False
        tokens, stopped = progress.canvas.final_tokens(conventions.stop_ids)
        if waiting:
            assert not stopped
            seen.append(len(tokens))

    for seed in range(10):
        decode(conventions, [1], model=ToyModel(seed), on_step=watch)
    assert seen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("steps", [4, 5, 9, 19, 500])
def test_steps_are_shared_out(family, steps):
    tokens, stats = decode(make_conventions(family, BLOCK), prompt_of(4), steps=steps, stop_ids=(), gen_len=28)
    masks = [8, 8, 8, 8] if "full" in family else [4, 8, 8, 8]
    first_tokens = [0, 1, 1, 1] if family == "block-shift" else [0, 0, 0, 0]  # they cost no step of the plan
    shares = [steps // 4 + (i < steps % 4) for i in range(4)]
    expected = [min(k, m - f) + f for k, m, f in zip(shares, masks, first_tokens, strict=True)]
    assert len(tokens) == 28 and stats.steps == sum(expected)


def test_too_few_steps_are_refused():
    with pytest.raises(UsageProblem) as error:
        decode(make_conventions("block", BLOCK), prompt_of(4), steps=3, gen_len=28)
    assert error.value.code == "E-PARAM" and "3 steps" in error.value.message


def test_plan_shares_as_evenly_as_possible():
    blocks = plan_blocks(8, 32, prompt_len=13, block_length=8, sub_block_length=4, steps=8)
    assert [[(s.start, s.end, s.n_steps) for s in b.spans] for b in blocks] == [
        [(12, 16, 2)],
        [(16, 20, 2), (20, 24, 2)],
        [(24, 28, 1), (28, 32, 1)],
    ]


@pytest.mark.parametrize("family", ["full-shift", "block-shift"])
def test_empty_prompt_of_a_shifted_family_is_refused(family):
    with pytest.raises(UsageProblem) as error:
        decode(make_conventions(family, BLOCK), [])
    assert error.value.code == "E-PROMPT"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("family", FAMILIES)
def test_bad_logits_name_step_and_position(family, value):
    class Bad(ToyModel):
        def logits(self, hidden, positions):
            rows = super().logits(hidden, positions)
            rows[positions == 14, slice(None) if value < 0 else 2] = value
            return rows

    conventions = make_conventions(family, BLOCK)
    with pytest.raises(JobError) as error:
        decode(conventions, prompt_of(9), model=Bad(forbid=[EOS]))
    assert error.value.code == "E-NUM"
    assert f"position {14 + conventions.logit_shift} " in error.value.message and "step 0" in error.value.message


def test_random_numbers_depend_on_their_key_only():
    sampling = Sampling(temperature=1.0, seed=2**64 - 1)
    numbers = [uniform(sampling, step, slot) for step in range(20) for slot in range(20)]
    assert numbers == [uniform(sampling, step, slot) for step in range(20) for slot in range(20)]
    assert len(set(numbers)) == 400 and 0.4 < np.mean(numbers) < 0.6
    assert uniform(Sampling(seed=1), 0, 0) != uniform(Sampling(seed=1, request=1), 0, 0)


@pytest.mark.parametrize(("family", "length", "cache"), [c for c in cases_with_caches() if c[2] in ("none", "block")])
def test_same_seed_same_tokens_whatever_the_exact_cache(family, length, cache):
    conventions, sampling = make_conventions(family, BLOCK), Sampling(temperature=0.7, top_k=9, top_p=0.9, seed=5)
    tokens = [decode(conventions, prompt_of(length), sampling=sampling, cache=c)[0] for c in ("none", cache)]
    assert tokens[0] == tokens[1]
    other = Sampling(temperature=0.7, top_k=9, top_p=0.9, seed=6)
    assert decode(conventions, prompt_of(length), sampling=other, cache=cache)[0] != tokens[0]
