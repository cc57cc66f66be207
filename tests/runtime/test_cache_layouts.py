"""Every cache layout in tiny bundles: how far logits and tokens are from exact ones, and reuse of a stored prompt."""

import functools
import shutil

import numpy as np
import pytest

from dlm_edge.errors import DlmEdgeError
from dlm_edge.runtime import Engine
from dlm_edge.runtime.attention import EXACT
from dlm_edge.runtime.blocks import Block, Canvas, Span
from dlm_edge.runtime.cache import CountedModel, open_cache
from dlm_edge.runtime.layouts import LAYOUTS, CacheShape, default_group, fitting_layout, layout_kind
from dlm_edge.runtime.sequence_memory import CAPACITY_STEP
from dlm_edge.runtime.step_model import FULL_ATTENTION
from tests.tiny import make_checkpoint, make_spec

BLOCK, PREFIX = 8, 168
export = pytest.importorskip("dlm_edge.export", reason="needs onnx").export
FAMILIES = ("llada", "dream", "sdar", "fast_dllm_v2")
BLOCK_CAUSAL = ("sdar", "fast_dllm_v2")
# The families with as many kv heads as query heads store X, the others latents of it.
FORMS = {"float": ["kv-fp16"], "kv": ["kv-int8", "kv-int4x2", "kv-int4"], "x": [f"x-int{b}" for b in (8, 4, 3, 2)]}
FORMS |= {"latent": [f"x-latent-int{b}" for b in (8, 4, 3, 2)], "deltas": [f"x-cl{b}" for b in (4, 3, 2)]}
SHAPES = {family: CacheShape.of(make_spec(family, n_layers=4)) for family in FAMILIES}
STATIC = {"sampler": "static", "max_new_tokens": 24, "stop_at_eos": False}


def prompt_of(length, seed=0):
    return np.random.default_rng(seed).integers(0, 250, length).tolist()


def fresh(engine, prompt, **settings):
    """With caches that never held anything."""
    engine._worker.call(engine.parts.model.discard)
    return engine.generate(prompt, **(STATIC | settings))


@pytest.fixture(scope="module")
def logits_of(open_with):
    """logits_of(family, layout): of one step over a stored prefix; the largest exact one is about 10."""

    @functools.cache
    def find(family, layout):
        engine = open_with(family, layout)
        model, block = engine.parts.model, FULL_ATTENTION if family in ("llada", "dream") else BLOCK
        ids = np.array(prompt_of(PREFIX + BLOCK))
        model.discard()
        model.reset(len(ids))
        model.run(ids[:PREFIX], 0, 0, block, np.arange(0), stored_rows=PREFIX)
        model.store(0, PREFIX)
        found = model.run(ids[PREFIX:], PREFIX, PREFIX, block, np.arange(BLOCK)).copy()
        assert np.isfinite(found).all()
        return found

    return find


def test_every_layout_is_covered():
    assert {"none", "kv-fp32", *(name for names in FORMS.values() for name in names)} == set(LAYOUTS)
    assert all(layout_kind(name).form == form for form, names in FORMS.items() for name in names)


# Errors follow the step between two codes, range / (2^bits - 1). Root mean square of the logits' error over their
# standard deviation, times 2^bits - 1, measured over these models: 1.2 to 4.3 (float16, of 11 significant bits: 1.2 at
# most). The bounds leave a factor of two. Three of the four layers of x-cl have 4 bits whatever its name says.
STEPS, HALF_STEPS = 8.5, 2.5
CASES = [(family, form) for family in FAMILIES for form in FORMS if form != "x" or family == "llada"]


@pytest.mark.parametrize(("family", "form"), CASES)
def test_logits_are_as_exact_as_the_bits(logits_of, family, form):
    exact, errors = logits_of(family, "kv-fp32"), []
    for name in FORMS[form]:
        errors.append(np.sqrt(np.square(logits_of(family, name) - exact).mean()) / exact.std())
        bits = 4 if form == "deltas" else layout_kind(name).bits
        assert 0 < errors[-1] < (HALF_STEPS / 2**11 if form == "float" else STEPS / (2**bits - 1)), name
    assert errors == sorted(errors)  # from many bits to few


@pytest.mark.parametrize("layout", ["kv-fp16", "kv-int8", "x-int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_eight_bits_keep_the_likeliest_tokens(logits_of, family, layout):
    """But for near ties, of which random models have some: a token's loss is within the error of two logits."""
    exact, found = logits_of(family, "kv-fp32"), logits_of(family, fitting_layout(layout, SHAPES[family]))
    largest, rows = np.abs(found - exact).max(), np.arange(len(exact))
    assert (exact.max(-1) - exact[rows, found.argmax(-1)] <= 2 * largest).all()
    assert (found.argmax(-1) == exact.argmax(-1)).sum() >= 7


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("layout", ["kv-int8", "x-int8"])
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_full_attention_reads_what_a_refresh_stored(open_with, family, layout, cache):
    """The canvas goes on behind the stored prefix, whose exact tail must end where the steps stop reading it."""

    prefix = 120  # a group of 128 ends inside the canvas

    def logits(name):
        engine = open_with(family, name)
        prompt, conventions = prompt_of(prefix), engine.spec.conventions
        canvas = Canvas(prompt, 2 * BLOCK, prefix + 2 * BLOCK, conventions.mask_id)
        counted = CountedModel(engine.parts.model, canvas, conventions, EXACT)
        engine.parts.model.discard()
        engine.parts.model.reset(len(canvas.ids))
        opened = open_cache(cache, counted, conventions, refresh_every=None, prefill_chunk=512)
        opened.start_block(Block(prefix, prefix + BLOCK, (Span(prefix, prefix + BLOCK),)))
        positions = np.arange(prefix, prefix + BLOCK)
        opened.rows(positions)  # the refresh
        return np.array(opened.rows(positions))

    exact, found = logits("kv-fp32"), logits(fitting_layout(layout, SHAPES[family]))
    assert 0 < np.sqrt(np.square(found - exact).mean()) / exact.std() < STEPS / 255


def test_x_becomes_latents_where_they_are_narrower(open_with):
    assert open_with("sdar", "x-int4").parts.cache_layout == "x-latent-int4"
    assert open_with("llada", "x-int4").parts.cache_layout == "x-int4"


REUSED = ["kv-fp32", "kv-fp16", "kv-int8", "kv-int4", "kv-int4x2", "x-int4", "x-int3", "x-cl3"]


@pytest.mark.parametrize("layout", REUSED)
@pytest.mark.parametrize("family", BLOCK_CAUSAL)
def test_the_same_prompt_is_not_computed_again(open_with, family, layout):
    engine, prompt = open_with(family, layout), prompt_of(150)
    first = fresh(engine, prompt)
    again = engine.generate(prompt, **STATIC)
    last = 144 - 8 * (family == "fast_dllm_v2")  # its last block gives the next block's first token
    assert (first.reused_tokens, again.reused_tokens) == (0, last)
    assert (first.prefill_passes, again.prefill_passes) == (1, int(last < 144))
    assert again.token_ids == first.token_ids


@pytest.mark.parametrize("layout", REUSED)
def test_going_back_into_a_group_takes_all_of_it(open_with, layout):
    """Keys with a scale per channel can only go back to the last exact ones, or to the beginning of a group."""
    engine, prompt = open_with("sdar", layout), prompt_of(150)
    fresh(engine, prompt)
    found = engine.generate(prompt[:100], **STATIC).reused_tokens
    group = default_group(engine.parts.cache_layout) if layout.startswith(("kv-int", "x-int")) else 8
    assert found == 96 // group * group


def test_a_longer_prompt_begins_with_the_stored_one(open_with):
    engine = open_with("sdar")
    expected = fresh(engine, prompt_of(190))
    fresh(engine, prompt_of(190)[:150])
    found = engine.generate(prompt_of(190), **STATIC)
    assert found.reused_tokens == 144 and found.token_ids == expected.token_ids


def test_the_answer_is_part_of_what_the_next_turn_reuses(open_with):
    engine = open_with("sdar")
    answer = fresh(engine, prompt_of(50)).token_ids
    turn = prompt_of(50) + answer + prompt_of(20, 3)
    found = engine.generate(turn, **STATIC)
    assert found.reused_tokens == 72 and found.token_ids == fresh(engine, turn).token_ids


@pytest.mark.parametrize("layout", REUSED)
@pytest.mark.parametrize("family", ["llada", *BLOCK_CAUSAL])
def test_another_prompt_finds_nothing_of_the_one_before(open_with, family, layout):
    engine, other = open_with(family, layout), prompt_of(90, seed=1)
    expected = fresh(engine, other)
    engine.generate(prompt_of(150), **STATIC)
    found = engine.generate(other, **STATIC)
    assert found.reused_tokens == 0 and found.token_ids == expected.token_ids


@pytest.mark.parametrize("differs", [0, 7, 8, 100, 143])
def test_reuse_ends_at_the_block_that_differs(open_with, differs):
    engine, prompt = open_with("sdar"), prompt_of(150)
    other = [token + (i == differs) for i, token in enumerate(prompt)]
    expected = fresh(engine, other)
    fresh(engine, prompt)
    found = engine.generate(other, **STATIC)
    assert found.reused_tokens == differs // 8 * 8 and found.token_ids == expected.token_ids


def test_runs_without_a_cache_leave_nothing_to_reuse(open_with):
    engine = open_with("sdar")
    fresh(engine, prompt_of(100))
    without = engine.generate(prompt_of(100, seed=1), cache="none", **STATIC)
    found = engine.generate(prompt_of(100), **STATIC)
    assert (without.reused_tokens, found.reused_tokens) == (0, 0)
    assert found.token_ids == fresh(engine, prompt_of(100)).token_ids


@pytest.mark.parametrize("layout", REUSED)
def test_growing_caches_keep_what_is_stored(open_with, layout):
    engine, model = open_with("sdar", layout), open_with("sdar", layout).parts.model
    first = fresh(engine, prompt_of(150))
    assert model.capacity == CAPACITY_STEP
    longer = engine.generate(prompt_of(150), sampler="static", max_new_tokens=200)
    assert model.capacity == 2 * CAPACITY_STEP and longer.reused_tokens == 144
    assert longer.token_ids[:24] == first.token_ids


def test_growing_caches_keep_the_bounds_of_pages(open_with):
    engine, quest = open_with("sdar"), {"attention": "quest", "budget": 32, "page_size": 16}
    first = fresh(engine, prompt_of(150), **quest)
    longer = engine.generate(prompt_of(150), sampler="static", max_new_tokens=200, **quest)
    assert longer.reused_tokens == 144 and longer.token_ids[:24] == first.token_ids


@pytest.mark.parametrize("layout", ["kv-fp32", "kv-int4", "x-cl3"])
def test_after_an_error_nothing_is_reused(open_with, monkeypatch, layout):
    engine, model = open_with("sdar", layout), open_with("sdar", layout).parts.model
    expected, run, calls = fresh(engine, prompt_of(150)), model.run, []

    def fail(*args, **options):
        calls.append(args)
        if len(calls) == 5:
            raise MemoryError
        return run(*args, **options)

    monkeypatch.setattr(model, "run", fail)
    with pytest.raises(DlmEdgeError):
        engine.generate(prompt_of(150), **STATIC)
    monkeypatch.undo()
    found = engine.generate(prompt_of(150), **STATIC)
    assert found.reused_tokens == 0 and found.token_ids == expected.token_ids


def test_cancelled_requests_keep_what_was_final(open_with):
    engine = open_with("sdar")
    expected = fresh(engine, prompt_of(150))
    job = engine.submit(prompt_of(150), on_event=lambda event: None, sampler="static", max_new_tokens=300)
    next(iter(job))
    job.cancel()
    assert job.result(20).stop_reason == "cancelled"
    assert engine.generate(prompt_of(150), **STATIC).token_ids == expected.token_ids


BAD = ["kv-int5", "kv-int4,group=7", "kv-int4,size=64", "x-int4,group=", "kv-int4,group=-64"]


@pytest.mark.parametrize(("cache", "target"), [*((bad, "cpu") for bad in BAD), ("kv-fp32", "cuda")])
def test_layouts_that_do_not_exist_are_refused(tmp_path, cache, target):
    with pytest.raises(DlmEdgeError) as error:
        export(make_checkpoint(tmp_path / "source", "sdar"), tmp_path / "bundle", cache=cache, target=target)
    assert error.value.code == "E-PARAM" and not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("layout", ["kv", "kv-int4", "kv-int4x2", "x-int4", "x-cl3"])
def test_float16_graphs_take_every_form_of_cache(tmp_path, layout):
    export(make_checkpoint(tmp_path / "source", "sdar"), tmp_path / "bundle", cache=layout, target="cuda")
    with Engine.open(tmp_path / "bundle", "cpu", threads=1) as engine:
        first = engine.generate(prompt_of(100), **STATIC)
        assert engine.generate(prompt_of(100), attention="losa", **STATIC).new_tokens == 24
        engine.forget_prompt()
        assert engine.generate(prompt_of(100), **STATIC).token_ids == first.token_ids


@pytest.mark.parametrize(
    ("layout", "other"),
    [
        ("kv-fp32", "kv-fp16"),
        ("kv-int8", "kv-int4"),
        ("kv-int8", "kv-int4x2"),
        ("kv-int4", "kv-fp32"),
        ("x-cl3", "x-int4"),
    ],
)
def test_a_manifest_that_names_another_layout_is_refused(open_with, tmp_path, layout, other):
    open_with("llada", layout)
    folder = shutil.copytree(open_with.folder / f"llada-{layout}", tmp_path / "bundle")
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace(f'"{layout}"', f'"{other}"'))
    with pytest.raises(DlmEdgeError) as error:
        Engine.open(folder)
    assert error.value.code == "E-MANIFEST"
