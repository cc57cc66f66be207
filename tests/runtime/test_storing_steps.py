"""A block's first step that stores the blocks before it: the same text as with passes of their own, in fewer of them."""

from __future__ import annotations

import pytest

from dlm_edge.runtime.attention import AttentionSettings
from dlm_edge.runtime.denoise import denoise, denoise_in_turns
from dlm_edge.runtime.guide import GuideModel
from dlm_edge.runtime.samplers import SAMPLERS
from tests.runtime.decoding import decode, prompt_of, settings_of
from tests.runtime.samplers import cases
from tests.runtime.samplers.claims import claims_of
from tests.runtime.strict_model import StrictModel
from tests.runtime.toy import EOS, make_conventions

SAMPLERS_HERE = [name for name in SAMPLERS if "block" not in claims_of(name).refused]


def trace(model, conventions, prompt, **settings):
    """Every canvas with its scores, and (tokens, stats)."""
    seen, values = [], {"sampler": "static", "stop_ids": ()} | settings

    def watch(progress):
        seen.append((progress.canvas.ids.tolist(), progress.canvas.confidence.tolist()))

    return seen, cases.decode(conventions, prompt, model=model, on_step=watch, **values)


def both(conventions, prompt, *, seed=0, **settings):
    """Storing in steps, and in passes of their own: the models, and the two stats. The traces are the same."""
    models = [StrictModel(seed, stores_floats=each) for each in (True, False)]
    (seen, (tokens, stats)), (expected, (wanted, plain)) = (
        trace(model, conventions, prompt, cache="block", **settings) for model in models
    )
    assert seen == expected and tokens == wanted
    assert (stats.steps, stats.blocks, stats.stop_reason) == (plain.steps, plain.blocks, plain.stop_reason)
    return models, stats, plain


@pytest.mark.parametrize("sampler", SAMPLERS_HERE)
@pytest.mark.parametrize("length", [0, 1, 4, 7, 12])
def test_the_same_text_with_a_pass_less_for_each_block(sampler, length):
    conventions, prompt = make_conventions("block", 4), prompt_of(length)
    for seed, options in enumerate(claims_of(sampler).options):
        settings = {"sampler": sampler, "gen_len": 15, **options}
        (fused, _), stats, plain = both(conventions, prompt, seed=seed, **settings)
        n_blocks = -(-(length % 4 + 15) // 4)
        assert plain.forward_passes - stats.forward_passes == stats.blocks - 1 == n_blocks - 1
        assert stats.prefill_passes == plain.prefill_passes == int(length >= 4)
        begin, end = length // 4 * 4, length // 4 * 4 + n_blocks * 4 - 4  # nothing needs the last block
        assert fused.stored[-(n_blocks - 1) :] == [(at, at + 4) for at in range(begin, end, 4)]
        exact, expected = trace(StrictModel(seed), conventions, prompt, cache="none", **settings)[1]
        assert exact == trace(StrictModel(seed), conventions, prompt, cache="block", **settings)[1][0]
        assert expected.steps == stats.steps


@pytest.mark.parametrize("chunk", [1, 8, 12, 512])
@pytest.mark.parametrize("length", [0, 5, 8, 31])
@pytest.mark.parametrize("block", [1, 2, 4, 8, 16])
def test_blocks_of_any_length(block, length, chunk):
    conventions = make_conventions("block", block, max(block // 2, 1))
    settings = {"sampler": "threshold", "threshold": 0.4, "gen_len": 21, "prefill_chunk": chunk}
    _, stats, plain = both(conventions, prompt_of(length), **settings)
    assert plain.forward_passes - stats.forward_passes == -(-(length % block + 21) // block) - 1


def test_windows_of_a_storing_step():
    """It gives logits of the present block alone; the steps after it run on that block."""
    model = StrictModel()
    decode(make_conventions("block", 4), prompt_of(9), model=model, cache="block", gen_len=7, stop_ids=())
    assert model.runs[0][:3] == (0, 8, 0) and model.runs[4] == (8, 16, 8, [4, 5, 6, 7])
    assert [run[:3] for run in model.runs[1:4]] == [(8, 12, 8)] * 3
    assert [run[:3] for run in model.runs[5:]] == [(12, 16, 12)] * 3
    assert model.stored == [(0, 8), (8, 12)]


@pytest.mark.parametrize("family", ["block", "block-shift"])
def test_the_end_of_the_text_ends_the_passes(family):
    """As many as blocks that were begun, also where a stop id ends the text early."""
    conventions, ended = make_conventions(family, 4), 0
    for seed in range(12):
        (fused, _), stats, plain = both(conventions, prompt_of(6), seed=seed, gen_len=30, stop_ids=(EOS,))
        assert plain.forward_passes - stats.forward_passes == (stats.blocks - 1 if family == "block" else 0)
        assert fused.stored[-1][1] == 4 * stats.blocks
        ended += stats.stop_reason == "eos"
    assert ended >= 3


@pytest.mark.parametrize("policy", ["quest", "losa", "flashblock", "mage"])
def test_other_attention_keeps_the_passes_apart(policy):
    """Its first step leaves state for the rows of its window."""
    _, stats, plain = both(make_conventions("block", 4), prompt_of(6), attention=AttentionSettings(policy=policy))
    assert stats.forward_passes == plain.forward_passes


STORED = {
    1: [(0, 4), (4, 8), (8, 12), (12, 16), (16, 20), (20, 24)],
    8: [(0, 4), (4, 12), (12, 20), (20, 24)],
    512: [(0, 4), (4, 20), (20, 24)],
}


@pytest.mark.parametrize("chunk", STORED)
def test_blocks_with_nothing_to_fill(chunk):
    """They wait together, as many as fit into a chunk with the block that needs them. Those that no block needs are not run."""
    gap = range(17, 22)
    fixed = {offset: 5 + offset % 20 for offset in range(42) if offset not in gap}
    settings = {"fixed": fixed, "gen_len": 30, "prefill_chunk": chunk}
    (fused, separate), stats, plain = both(make_conventions("block", 4), prompt_of(6), **settings)
    assert stats.blocks == 2 and separate.stored[-1] == (40, 44)
    assert fused.stored == STORED[chunk] and fused.runs[-1][:3] == (24, 28, 24)
    assert max(end - start for start, end, *_ in fused.runs) == {1: 8, 8: 8, 512: 20}[chunk]
    assert stats.forward_passes == len(gap) + {1: 4, 8: 3, 512: 1}[chunk]
    assert plain.forward_passes == len(gap) + 11


def test_where_all_is_given_only_the_prompt_is_run():
    model, fixed = StrictModel(), dict.fromkeys(range(16), 5)
    settings = {"fixed": fixed, "gen_len": 16, "stop_ids": ()}
    tokens, stats = decode(make_conventions("block", 4), prompt_of(8), model=model, cache="block", **settings)
    assert tokens == [5] * 16 and stats.forward_passes == 1 and model.stored == [(0, 8)]


LEFT_TO_RIGHT = make_conventions("block", 4, 1)


def check_goes_on(model, longer, reused):
    """The next request computes what is not stored, and is what it would be in a fresh model."""
    assert len(model.ids) == reused
    expected = decode(LEFT_TO_RIGHT, longer, model=StrictModel(forbid=[EOS]), cache="none", stop_ids=())[0]
    model.runs.clear()
    found, stats = decode(LEFT_TO_RIGHT, longer, model=model, cache="block", stop_ids=())
    assert found == expected and stats.reused_tokens == reused == model.runs[0][0]


@pytest.mark.parametrize("steps", range(1, 24))
def test_a_request_that_is_cancelled_after_a_step(steps):
    model, prompt, made = StrictModel(forbid=[EOS]), prompt_of(9), []
    settings = settings_of(LEFT_TO_RIGHT, gen_len=24, cache="block", stop_ids=())
    ends = {"on_step": made.append, "cancelled": lambda: len(made) == steps}
    tokens, stats = denoise(model, LEFT_TO_RIGHT, prompt, settings, SAMPLERS["static"], **ends)
    assert stats.stop_reason == "cancelled" and len(tokens) == steps
    check_goes_on(model, prompt + tokens, (8 + steps) // 4 * 4)  # what the last step's block began with


@pytest.mark.parametrize("how", ["cancelled", "terminated"])
@pytest.mark.parametrize("n_blocks", [1, 2, 5])
def test_a_request_that_ends_while_blocks_wait(n_blocks, how):
    """Between two blocks, or in the run that would have stored the first of them."""
    model, prompt, asked = StrictModel(forbid=[EOS]), prompt_of(8), []
    settings = settings_of(LEFT_TO_RIGHT, gen_len=24, cache="block", stop_ids=())
    turns = denoise_in_turns(
        model, LEFT_TO_RIGHT, prompt, settings, SAMPLERS["static"], lambda progress: None, lambda: bool(asked)
    )
    for _ in range(1 + n_blocks):
        next(turns)
    if how == "cancelled":
        asked.append(True)
    else:
        model.before_run = lambda index: model.terminate()
    with pytest.raises(StopIteration) as end:
        next(turns)
    tokens, stats = end.value.value
    assert stats.stop_reason == "cancelled" and len(tokens) == 4 * n_blocks
    model.before_run = lambda index: None
    check_goes_on(model, prompt + tokens, 8 + 4 * (n_blocks - 1))


@pytest.mark.parametrize("sampler", ["static", "freedave", "wino"])
def test_requests_in_turns(sampler):
    """Each has its own caches; what one of them leaves waiting is not touched by the other."""
    conventions, prompts = make_conventions("block", 4), [prompt_of(9), prompt_of(6, 3)]
    settings = settings_of(conventions, sampler=sampler, cache="block", stop_ids=())
    expected = [decode(conventions, p, sampler=sampler, cache="none", stop_ids=())[0] for p in prompts]
    waiting = {
        i: denoise_in_turns(StrictModel(), conventions, p, settings, SAMPLERS[sampler], lambda _: None, lambda: False)
        for i, p in enumerate(prompts)
    }
    found = {}
    while waiting:
        for i, turns in list(waiting.items()):
            try:
                next(turns)
            except StopIteration as end:
                found[i] = end.value[0]
                del waiting[i]
    assert [found[i] for i in range(2)] == expected


def test_a_guide_stores_before_it_judges():
    """It runs on several fillings at once, and never on the canvas: nothing could be stored by those runs."""
    conventions, passes = make_conventions("block", 4), []
    for stores_floats in (True, False):
        guide, prompt = StrictModel(7, stores_floats=stores_floats), prompt_of(6)
        tokens, stats = decode(
            conventions, prompt, sampler="guided", cache="block", stop_ids=(), guide=GuideModel(guide, conventions)
        )
        passes.append((tokens, stats.guide_passes, guide.stored))
    assert passes[0] == passes[1] and passes[0][2] == [(at, at + 4) for at in range(0, 24, 4)]
