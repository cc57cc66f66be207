"""Given tokens stay, guide what is filled around them, and are refused where the model could not see them."""

from __future__ import annotations

import pytest

from dlm_edge.errors import UsageProblem
from tests.runtime.toy import ToyModel
from tests.tiny import EOS_ID, MASK_ID, PAD_ID, VOCAB_SIZE


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_full_attention_takes_tokens_anywhere(make_engine, family, cache):
    engine = make_engine(family)
    fixed = {0: 11, 17: 12, 39: 13}
    found = engine.generate([5, 6, 7], max_new_tokens=40, fixed=fixed, cache=cache)
    assert {i: found.token_ids[i] for i in fixed} == fixed and found.new_tokens == 40
    free = engine.generate([5, 6, 7], max_new_tokens=40, cache=cache)
    assert found.token_ids != free.token_ids, "they are seen"
    assert found.steps < free.steps + 1


def test_a_suffix_is_seen_and_not_part_of_the_text(make_engine):
    engine = make_engine("llada")
    one = engine.generate([5, 6, 7], max_new_tokens=10, suffix=[20, 21, 22])
    other = engine.generate([5, 6, 7], max_new_tokens=10, suffix=[30, 31, 32])
    assert one.new_tokens == other.new_tokens == 10 and one.token_ids != other.token_ids
    same = engine.generate([5, 6, 7], max_new_tokens=13, fixed={10: 20, 11: 21, 12: 22})
    assert same.token_ids == [*one.token_ids, 20, 21, 22]
    text = engine.generate("some words", raw=True, max_new_tokens=10, suffix="end")
    assert text.new_tokens == 10


def test_block_causal_models_take_them_inside_the_block(make_engine):
    engine = make_engine("sdar")
    block = engine.spec.conventions.block_length
    prompt = list(range(5, 5 + block))
    found = engine.generate(prompt, max_new_tokens=block, fixed={block - 1: 11})
    assert found.token_ids[block - 1] == 11
    free = engine.generate(prompt, max_new_tokens=block)
    assert found.token_ids != [*free.token_ids[:-1], 11]
    for options in ({"fixed": {block: 11}, "max_new_tokens": 2 * block}, {"suffix": [11], "max_new_tokens": block}):
        with pytest.raises(UsageProblem, match="later block"):
            engine.generate(prompt, **options)
    begun = engine.generate(prompt, max_new_tokens=2 * block, fixed=dict.fromkeys(range(block + 1), 11))
    assert begun.token_ids[: block + 1] == [11] * (block + 1), "no gap before them"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"fixed": {-1: 5}}, "E-PARAM"),
        ({"fixed": {8: 5}}, "E-PARAM"),
        ({"fixed": {0: MASK_ID}}, "E-PROMPT"),
        ({"fixed": {0: VOCAB_SIZE}}, "E-PROMPT"),
        ({"fixed": {0: -5}}, "E-PROMPT"),
        ({"suffix": [MASK_ID]}, "E-PROMPT"),
        ({"suffix": "x" * 10**7}, "E-PROMPT"),
        ({"suffix": [5] * 4000}, "E-CONTEXT"),
    ],
)
def test_odd_ones_are_refused(make_engine, options, code):
    with pytest.raises(UsageProblem) as error:
        make_engine("llada").generate([5, 6], max_new_tokens=8, **options)
    assert error.value.code == code


def test_a_suffix_needs_the_length_of_the_gap(make_engine):
    with pytest.raises(UsageProblem, match="max_new_tokens"):
        make_engine("llada").generate([5, 6], suffix=[5])


@pytest.mark.parametrize("family", ["llada", "dream", "sdar", "fast_dllm_v2"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_no_end_of_text_before_min_new_tokens(make_engine, family, temperature):
    eager = ToyModel(vocab=VOCAB_SIZE, forbid=[PAD_ID, MASK_ID])
    run = eager.run

    def with_end(*args, **options):
        logits = run(*args, **options)
        logits[:, EOS_ID] = 50.0
        return logits

    eager.run = with_end
    engine = make_engine(family, model=eager)
    assert engine.generate([5, 6, 7], max_new_tokens=40, temperature=temperature, seed=1).new_tokens == 0
    for n in (1, 13, 39):
        result = engine.generate([5, 6, 7], max_new_tokens=40, min_new_tokens=n, temperature=temperature, seed=1)
        assert (result.new_tokens, result.stop_reason) == (n, "eos")
