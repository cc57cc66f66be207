"""`static` in the runtime is the plain torch loop, token for token, on the trained models that the project ships."""

from __future__ import annotations

import math

import pytest
from tokenizers import Tokenizer

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.evaluation.masked_nll import masked_nll, text_windows
from dlm_edge.evaluation.tasks import SHORT_TASKS, make_samples
from dlm_edge.export import export
from dlm_edge.models import load_model, plain_loop
from dlm_edge.runtime import Engine

MODELS = ("reference", "reference-full")
NEW_TOKENS = 24


@pytest.fixture(scope="module", params=MODELS)
def opened(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "bundle"
    export(request.param, folder)
    with Engine.open(folder) as engine:
        yield engine, load_model(request.param)


@pytest.mark.parametrize("task", SHORT_TASKS)
def test_static_equals_the_torch_loop(opened, task):
    engine, model = opened
    for sample in make_samples(task, 2, seed=11):
        prompt = engine.encode(sample.prompt)
        expected = plain_loop.generate(model, prompt, gen_len=NEW_TOKENS)
        for cache in ("none", "block") if engine.spec.conventions.attention != "full" else ("none",):
            result = engine.generate(prompt, max_new_tokens=NEW_TOKENS, sampler="static", cache=cache)
            assert result.token_ids == expected, (task, cache)


def test_threshold_above_one_is_static(opened):
    engine, _ = opened
    for sample in make_samples("json", 2, seed=12):
        static = engine.generate(sample.prompt, max_new_tokens=NEW_TOKENS, sampler="static")
        above_one = engine.generate(sample.prompt, max_new_tokens=NEW_TOKENS, sampler="threshold", threshold=1.5)
        assert above_one.token_ids == static.token_ids and above_one.steps == static.steps


def test_full_attention_caches_with_a_refresh_at_every_step_change_nothing(opened):
    engine, _ = opened
    if engine.spec.conventions.attention != "full":
        pytest.skip("block-causal models have an exact cache")
    sample = make_samples("copy", 1, seed=13)[0]
    expected = engine.generate(sample.prompt, max_new_tokens=NEW_TOKENS, cache="none").token_ids
    for cache in ("prefix", "dual"):
        result = engine.generate(sample.prompt, max_new_tokens=NEW_TOKENS, cache=cache, refresh_every=1)
        assert result.token_ids == expected, cache


def test_reference_has_learned_its_tasks(opened):
    engine, _ = opened
    samples = make_samples("copy", 10, seed=14)
    right = sum(s.is_correct(engine.generate(s.prompt, max_new_tokens=NEW_TOKENS).text) for s in samples)
    assert right >= 9


def test_both_predict_text_far_better_than_chance(opened):
    engine, _ = opened
    windows, _ = text_windows(Tokenizer.from_file(str(tokenizer_of(engine))), 8, 256)
    bound = masked_nll(engine.parts.model, engine.spec, windows, seed=0).bound.mean()
    assert bound < math.log(engine.spec.vocab_size) - 1.5  # nats per token; uniform guessing gives log(vocab_size)


def tokenizer_of(engine):
    name = "reference-full" if engine.spec.conventions.attention == "full" else "reference"
    return open_checkpoint(name).path / "tokenizer.json"
