"""Blocks that end at a delimiter."""

from dataclasses import replace

import pytest

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.blocks import Canvas
from dlm_edge.runtime.samplers import SAMPLERS
from tests.runtime.decoding import decode, prompt_of
from tests.runtime.samplers.geometries import BLOCK, canvases, sharp_model, with_full_attention
from tests.runtime.samplers.given import FIRST, scores_of, state_of
from tests.runtime.toy import ToyModel, make_conventions

DELIMITERS = tuple(range(12))  # nearly every third token


def border_of(confidence, ids, *, usual=4, gen_len=40, **options):
    """Where a block at FIRST ends that usually is 4 long, in a window of all the rows."""
    n, chosen = len(confidence), SAMPLERS["adablock"]
    canvas = Canvas(range(1, FIRST + 1), gen_len, FIRST + max(gen_len, n), mask_id=99)
    state = state_of(
        n, block=(FIRST, FIRST + usual), span=(FIRST, FIRST + n), canvas=canvas, tokens={"delimiters": (7, 8)}
    )
    return chosen.border(scores_of(confidence, ids), state, chosen.options(**options)) - FIRST


def test_the_most_confident_delimiter_ends_the_block():
    assert border_of([0.9, 0.4, 0.9, 0.6, 0.9, 0.5], [1, 7, 2, 8, 3, 7]) == 4
    assert border_of([0.9, 0.4, 0.9, 0.4, 0.9, 0.6], [1, 7, 2, 8, 3, 7]) == 6
    assert border_of([0.9, 0.6, 0.9, 0.6], [1, 7, 2, 8]) == 2  # ties go left
    assert border_of([0.3, 0.1], [7, 8]) == 1


def test_without_one_the_usual_length():
    assert border_of([0.9] * 6, [1] * 6) == 4
    assert border_of([0.29, 0.2, 0.9, 0.9, 0.2, 0.1], [7, 8, 1, 1, 7, 8]) == 4
    assert border_of([0.5] * 6, [7] * 6, delimiter_threshold=0.6) == 4


def test_only_a_share_of_the_generation_is_looked_at():
    ids, confidence = [1, 1, 1, 1, 1, 7, 1, 1], [0.5] * 8
    assert border_of(confidence, ids, gen_len=24) == 6
    assert border_of(confidence, ids, gen_len=20) == 4
    assert border_of(confidence, ids, gen_len=20, window=0.3) == 6
    assert border_of([0.5] * 8, [1, 1, 1, 7, 1, 1, 1, 1], gen_len=3, window=1.0) == 4  # beyond the last token
    chosen = SAMPLERS["adablock"]
    lengths = [chosen.window(chosen.options(), gen_len, 32) for gen_len in (1, 100, 129, 400)]
    assert lengths == [32, 32, 32, 100]


def borders(conventions, prompt, **settings):
    """(ends of the blocks, tokens, steps)"""
    ends = []

    def watch(progress):
        if progress.block_end not in ends:
            ends.append(progress.block_end)
        masked = progress.canvas.is_masked
        assert not masked[: ends[-2] if len(ends) > 1 else 0].any() and masked[ends[-1] :].all()

    tokens, stats = decode(
        conventions, prompt, sampler="adablock", tokens={"delimiters": DELIMITERS}, on_step=watch, **settings
    )
    assert stats.blocks == len(ends)
    return ends, tokens, stats.steps


@with_full_attention
@pytest.mark.parametrize(("gen_len", "window"), [(19, 0.25), (40, 0.25), (40, 1.0), (3, 1.0), (1, 0.0)])
def test_blocks_tile_the_generation(family, length, cache, gen_len, window):
    ends, tokens, steps = borders(
        make_conventions(family, BLOCK),
        prompt_of(length),
        model=sharp_model(),
        cache=cache,
        gen_len=gen_len,
        window=window,
        delimiter_threshold=0.1,
    )
    assert len(tokens) == gen_len and ends == sorted(set(ends)) and ends[0] > length
    assert ends[-1] == length + -(-gen_len // BLOCK) * BLOCK
    assert len(ends) <= steps <= ends[-1] - length


def test_borders_move_and_end_at_delimiters():
    moved = 0
    for seed in range(6):
        model = ToyModel(seed, sharpness=20.0, forbid=[38])
        ends, tokens, _ = borders(make_conventions("full", BLOCK), prompt_of(5), model=model, gen_len=64)
        for before, end in zip([5, *ends], ends, strict=False):
            assert end - before <= 16
            moved += end - before != BLOCK
    assert moved > 5


@with_full_attention
@pytest.mark.parametrize("threshold", [0.6, 1.5])
def test_no_delimiter_is_fixed_blocks(family, length, cache, threshold):
    """The window is wider than a block, and what it shows beyond the block has no influence."""
    other = ("threshold", {"threshold": threshold}) if threshold < 1 else ("static", {})
    for ids, wanted in (((), 0.3), (DELIMITERS, 1.5)):
        tokens = (("delimiters", ids),)
        found = canvases(
            family, length, cache, "adablock", sub=BLOCK, tokens=tokens, gen_len=40, window=0.5,
            threshold=threshold, delimiter_threshold=wanted,
        )  # fmt: skip
        assert found == canvases(family, length, cache, other[0], sub=BLOCK, gen_len=40, **other[1])


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_the_first_scores_of_a_block_cost_no_pass_of_their_own(cache):
    """One pass per selection, also where borders move."""
    options = {"tokens": {"delimiters": DELIMITERS}, "delimiter_threshold": 0.1, "gen_len": 40}
    _, stats = decode(
        make_conventions("full", BLOCK), prompt_of(5), model=sharp_model(), cache=cache, sampler="adablock", **options
    )
    assert stats.forward_passes == stats.steps


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_given_tokens_among_the_masks(cache):
    fixed = {**{i: i % 7 for i in range(9)}, 20: 3, **{i: 5 for i in range(24, 50)}}
    tokens, _ = decode(
        make_conventions("full", BLOCK), prompt_of(5), model=sharp_model(), cache=cache, sampler="adablock",
        gen_len=48, fixed=fixed, tokens={"delimiters": DELIMITERS}, delimiter_threshold=0.1,
    )  # fmt: skip
    assert len(tokens) == 48 and all(tokens[at] == token for at, token in fixed.items() if at < 48)


@pytest.mark.parametrize("family", ["block", "block-shift"])
def test_borders_that_training_fixed_do_not_move(family):
    with pytest.raises(UsageProblem, match="adablock moves the borders") as error:
        decode(make_conventions(family, BLOCK), prompt_of(5), sampler="adablock")
    assert error.value.code == "E-PARAM"


def test_delimiters_are_found_in_the_vocabulary(make_engine):
    engine = make_engine("llada")
    codec, seen = engine.parts.codec, []
    real = SAMPLERS["adablock"].border
    with pytest.MonkeyPatch.context() as patch:
        watched = replace(SAMPLERS["adablock"], border=lambda *given: seen.append(given[1].tokens) or real(*given))
        patch.setitem(SAMPLERS, "adablock", watched)
        engine.generate([5, 6, 7], sampler="adablock", sampler_options={"delimiters": ("e", "a")}, max_new_tokens=9)
    expected = {i for i in range(len(codec.tokenizer.get_vocab())) if {"e", "a"} & set(codec.decode([i]))}
    assert len(expected) > 2 and {frozenset(tokens["delimiters"]) for tokens in seen} == {frozenset(expected)}


def test_a_delimiter_that_no_token_contains_is_refused(make_engine):
    with pytest.raises(UsageProblem, match="no token contains delimiters") as error:
        make_engine("llada").generate([5], sampler="adablock", sampler_options={"delimiters": ("never one token",)})
    assert error.value.code == "E-PARAM"
