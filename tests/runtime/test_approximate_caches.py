"""FreeCache: its limits bit for bit, the windows it runs, and what it freezes in every layout of the caches."""

import numpy as np
import pytest

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.attention import EXACT
from dlm_edge.runtime.blocks import Block, Canvas, Span
from dlm_edge.runtime.cache import CountedModel, largest_step_window, open_cache
from dlm_edge.runtime.layouts import CacheShape, fitting_layout
from dlm_edge.runtime.ort_step_model import OrtStepModel
from dlm_edge.runtime.resolving import resolve
from dlm_edge.runtime.settings import GenerateSettings
from tests.runtime.decoding import decode, prompt_of
from tests.runtime.test_cache import BLOCK, trace, with_lengths
from tests.runtime.toy import ToyModel, make_conventions
from tests.tiny import make_spec

FULL = with_lengths("full", "full-shift")
STATIC = {"sampler": "static", "max_new_tokens": 16, "stop_at_eos": False}
LAYOUTS = ["kv-fp32", "kv-fp16", "kv-int8", "kv-int4x2", "kv-int4", "x-int8", "x-int3", "x-cl3"]


@pytest.mark.parametrize("limit", [{"cache_window": 1000}, {"cache_window": 0, "refresh_every": 1}], ids=str)
@pytest.mark.parametrize("sampler", ["static", "threshold"])
@pytest.mark.parametrize(("family", "length"), FULL)
def test_its_limits_are_no_cache(family, length, sampler, limit):
    conventions, settings = make_conventions(family, BLOCK), {"sampler": sampler, "threshold": 0.3, "stop_ids": ()}
    expected = trace(conventions, prompt_of(length), cache="none", **settings)
    assert trace(conventions, prompt_of(length), cache="freecache", **limit, **settings) == expected


@pytest.mark.parametrize("window", [0, 5, 12])
@pytest.mark.parametrize("family", ["full", "full-shift"])
def test_what_is_frozen_is_approximate(family, window):
    """Guards the test above: with something frozen the toy model notices."""
    conventions = make_conventions(family, BLOCK)
    expected = decode(conventions, prompt_of(9), cache="none", stop_ids=())[0]
    assert decode(conventions, prompt_of(9), cache="freecache", cache_window=window, stop_ids=())[0] != expected


@pytest.mark.parametrize("shift", [0, 1])
def test_one_full_pass_and_then_from_the_border_on(shift):
    """The first step of a block stores what leaves the window, so no pass is made for that alone."""
    model, conventions = ToyModel(), make_conventions("full-shift" if shift else "full", 4)
    decode(conventions, prompt_of(10), model=model, cache="freecache", cache_window=6, gen_len=12, stop_ids=())
    steps = [(4, 22, 4)] * 3, [(4, 22, 4), *[(8, 22, 8)] * 3], [(8, 22, 8), *[(12, 22, 12)] * 3]
    assert [run[:3] for run in model.runs] == [(0, 22, 0), *sum(steps, [])]
    assert all(len(run[3]) for run in model.runs)  # every pass predicts


def test_a_pass_that_stores_begins_where_a_group_does():
    model, conventions = ToyModel(), make_conventions("full", 4)
    model.store_multiple = 3
    decode(conventions, prompt_of(10), model=model, cache="freecache", cache_window=6, gen_len=12, stop_ids=())
    assert [run[:3] for run in model.runs[:10:4]] == [(0, 22, 0), (3, 22, 3), (6, 22, 6)]
    assert [run[:3] for run in model.runs[1::4]] == [(4, 22, 4), (8, 22, 8), (12, 22, 12)]


def test_without_a_window_it_begins_where_the_block_is_predicted():
    model = ToyModel()
    decode(make_conventions("full-shift", 4), prompt_of(5), model=model, cache="freecache", cache_window=0, stop_ids=())
    assert model.runs[1][:3] == (4, 25, 4)


def test_full_passes_on_request():
    model = ToyModel()
    settings = {"cache": "freecache", "cache_window": 2, "refresh_every": 3, "gen_len": 8, "stop_ids": ()}
    decode(make_conventions("full", 4), prompt_of(6), model=model, **settings)
    reuse, moving, after, full = (4, 14, 4), (4, 14, 4), (8, 14, 8), (0, 14, 0)
    assert [run[:3] for run in model.runs] == [full, reuse, reuse, full, moving, after, full, after]


def test_the_widest_window_is_the_first():
    blocks = [Block(start, start + 8, (Span(start, start + 8),)) for start in (40, 48, 56)]
    assert largest_step_window("freecache", blocks, 64, 0, 16) == 64 - 24
    assert largest_step_window("freecache", blocks, 64, 1, 0) == 64 - 39
    assert largest_step_window("freecache", blocks, 64, 0, 512) == 64


def test_settings_that_do_not_fit_are_refused():
    full, causal = make_conventions("full"), make_conventions("block")
    assert resolve(GenerateSettings(cache="freecache"), full, room=99).cache_window == 512
    assert resolve(GenerateSettings(cache="freecache", cache_window=0), full, room=99).cache_window == 0
    for conventions, settings, layout in (
        (causal, {"cache": "freecache"}, "kv-fp32"),
        (full, {"cache": "freecache"}, "none"),
        (full, {"cache_window": 9}, "kv-fp32"),
        (full, {"cache": "dual", "cache_window": 9}, "kv-fp32"),
        (full, {"cache": "freecache", "cfg_scale": 1.0}, "kv-fp32"),
    ):
        with pytest.raises(UsageProblem) as error:
            resolve(GenerateSettings(**settings), conventions, room=99, layout=layout)
        assert error.value.code == "E-PARAM"
    with pytest.raises(UsageProblem):
        GenerateSettings(cache_window=-1)


def fitting(family, layout):
    return fitting_layout(layout, CacheShape.of(make_spec(family, n_layers=4)))


def random_prompt(length):
    return np.random.default_rng(0).integers(0, 250, length).tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_a_window_over_everything_is_no_cache_in_every_layout(open_with, family, layout):
    """Nothing stored is read, so not even codes make a difference."""
    engine, prompt = open_with(family, fitting(family, layout)), random_prompt(150)
    expected = engine.generate(prompt, cache="none", **STATIC)
    found = engine.generate(prompt, cache="freecache", **STATIC)
    assert found.token_ids == expected.token_ids and found.forward_passes == expected.forward_passes
    again = engine.generate(prompt, cache="freecache", cache_window=0, refresh_every=1, **STATIC)
    assert again.token_ids == expected.token_ids


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_what_leaves_the_window_is_stored(open_with, family, layout):
    engine, prompt = open_with(family, fitting(family, layout)), random_prompt(150)
    found = engine.generate(prompt, cache="freecache", cache_window=20, **STATIC)
    border, stored = 150 + 8 - 20, engine.parts.model.memory.ids
    assert found.forward_passes == 16  # as many as steps
    assert stored[:border].tolist() == (prompt + found.token_ids)[:border]
    assert len(stored) == border or layout.startswith("kv-fp")  # floats lie where they were computed


# As in test_cache_layouts.py: the root mean square of the logits' error over their standard deviation follows the step
# between two codes; 4.3 steps of 1 / 255 at most over a prefix that one pass stored. Here three passes did.
BOUND = 8.5 / 255


@pytest.mark.parametrize("layout", ["kv-int8", "x-int8"])
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_steps_read_what_several_passes_stored(open_with, monkeypatch, family, layout):
    prompt_len, blocks = 150, [Block(at, at + 8, (Span(at, at + 8),)) for at in (150, 158, 166)]
    multiple = open_with(family, fitting(family, layout)).parts.model.store_multiple
    assert (multiple == 1) == ((family, layout) == ("llada", "x-int8")) and 128 % multiple == 0
    monkeypatch.setattr(OrtStepModel, "store_multiple", multiple)  # what floats compute again would differ

    def logits(name):
        engine = open_with(family, name)
        conventions, model = engine.spec.conventions, engine.parts.model
        canvas = Canvas(random_prompt(prompt_len), 24, prompt_len + 24, conventions.mask_id)
        model.discard()
        model.reset(len(canvas.ids))
        counted = CountedModel(model, canvas, conventions, EXACT)
        cache = open_cache("freecache", counted, conventions, refresh_every=None, prefill_chunk=512, window=11)
        for block in blocks:
            cache.start_block(block)
            positions = np.arange(block.start, block.end)
            cache.rows(positions)  # stores
            found = np.array(cache.rows(positions))
            canvas.commit(positions, positions % 200)
        return found

    exact, found = logits("kv-fp32"), logits(fitting(family, layout))
    assert 0 < np.sqrt(np.square(found - exact).mean()) / exact.std() < BOUND


def test_sparse_attention_reads_the_frozen_part(open_with):
    """The limits of sparse attention hold over it as over any prefix."""
    engine, prompt = open_with("llada"), random_prompt(150)
    settings = {"cache": "freecache", "cache_window": 20} | STATIC
    expected = engine.generate(prompt, **settings)
    for policy in ({"attention": "quest", "budget": 4096}, {"attention": "losa", "active": 1.0, "budget": 4096}):
        assert engine.generate(prompt, **policy, **settings).token_ids == expected.token_ids
    assert engine.generate(prompt, attention="quest", budget=32, page_size=16, **settings).density < 1
