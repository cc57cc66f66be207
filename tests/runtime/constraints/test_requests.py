"""Constraints through the engine: every family and sampler ends valid, and what cannot be combined is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.constraints import compiling
from dlm_edge.runtime.constraints.compiling import ConstraintCompiler
from dlm_edge.runtime.samplers import SAMPLERS
from tests.runtime.conftest import toy_parts
from tests.runtime.toy import ToyModel
from tests.tiny import MASK_ID, PAD_ID, VOCAB_SIZE, make_spec, make_tokenizer

REGEX = r"(yes|no), [a-z]{3,9}( \w+)?\."
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}, "required": ["b"]}
GRAMMAR = 'root ::= "(" root ")" | "x"'


def toy():
    return ToyModel(vocab=VOCAB_SIZE, forbid=[PAD_ID, MASK_ID])


def cannot_be_followed(sampler):
    return sampler.needs.can_edit or sampler.needs.needs_guide or sampler.needs.chooses_ids


@pytest.mark.parametrize("family", ["llada", "dream", "sdar", "fast_dllm_v2"])
@pytest.mark.parametrize("settings", [{"threshold": 0.0}, {"sampler": "static"}, {"temperature": 1.0, "seed": 3}])
def test_every_family_writes_valid_texts(make_engine, family, settings):
    engine = make_engine(family, model=toy())
    for prompt in ("some words", "x"):
        text = engine.generate(prompt, max_new_tokens=37, regex=REGEX, **settings).text
        assert re.fullmatch(REGEX, text), text
        value = json.loads(engine.generate(prompt, max_new_tokens=37, json_schema=SCHEMA, **settings).text)
        assert isinstance(value["b"], bool) and set(value) <= {"a", "b"}
        text = engine.generate(prompt, max_new_tokens=20, grammar=GRAMMAR, **settings).text
        depth = text.count("(")
        assert text == "(" * depth + "x" + ")" * depth


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_writes_valid_texts_or_is_refused(make_engine, name):
    sampler = SAMPLERS[name]
    engine = make_engine("llada", model=toy())
    asked = {"max_new_tokens": 30, "regex": REGEX, "sampler": name}
    if cannot_be_followed(sampler) or sampler.needs.needs_soft_input or sampler.needs.needs_filter:
        with pytest.raises(UsageProblem):
            engine.generate("x", **asked)
        return
    for prompt in ("some words", "x", "other words"):
        text = engine.generate(prompt, **asked).text
        assert re.fullmatch(REGEX, text), text


def test_texts_come_in_pieces_that_make_the_whole(make_engine):
    events = list(make_engine(model=toy()).stream("some words", max_new_tokens=70, regex="é{30}x?", threshold=0.0))
    assert re.fullmatch("é{30}x?", events[-1].result.text)
    assert "".join(e.text for e in events if hasattr(e, "text")) == events[-1].result.text


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"regex": "a", "json_schema": {}}, "exclude each other"),
        ({"regex": "a", "stop": "b"}, "stop cannot be combined"),
        ({"regex": "a", "fixed": {0: 5}}, "fixed cannot"),
        ({"grammar": GRAMMAR, "suffix": "b", "max_new_tokens": 5}, "suffix cannot"),
        ({"json_schema": {}, "min_new_tokens": 3}, "min_new_tokens cannot"),
        ({"json_schema": {}, "stop_at_eos": False}, "stop_at_eos"),
        ({"regex": "("}, "position 0"),
        ({"regex": "a{2000}", "max_new_tokens": 9}, r"takes \d+ tokens, and there are 9"),
        ({"json_schema": "{"}, "no JSON"),
        ({"json_schema": {"not": {}}}, "'not'"),
        ({"grammar": "root ::= root"}, "grammar|rule|root"),
        ({"json_schema": 5}, "json_schema"),
    ],
)
def test_what_does_not_go_together_is_refused(make_engine, settings, named):
    with pytest.raises(UsageProblem, match=named) as caught:
        make_engine().submit("x", **settings)
    assert caught.value.code == "E-PARAM"


def test_a_constraint_is_made_once_and_only_so_many_are_kept(monkeypatch):
    compiler, conventions = ConstraintCompiler(), make_spec("sdar").conventions
    tokenizer = make_tokenizer()
    first = compiler.constraint({"regex": "a+"}, tokenizer, conventions)
    assert compiler.constraint({"regex": "a+"}, tokenizer, conventions) is first
    assert compiler.constraint({"grammar": GRAMMAR}, tokenizer, conventions) is not compiler.constraint(
        {"grammar": GRAMMAR}, tokenizer, conventions
    )
    for n in range(compiling.MAX_KEPT):
        compiler.constraint({"regex": f"b{{{n}}}"}, tokenizer, conventions)
    again = compiler.constraint({"regex": "a+"}, tokenizer, conventions)
    assert again is not first
    monkeypatch.setattr(compiling, "is_worn", lambda automaton: True)
    assert compiler.constraint({"regex": "a+"}, tokenizer, conventions) is not again


def test_two_jobs_share_a_constraint_without_disturbing_each_other(make_engine):
    engine = make_engine(model=toy(), more_models=[toy(), toy()])
    alone = [engine.generate(p, max_new_tokens=30, regex=REGEX).text for p in ("a", "b c", "d e f")]
    jobs = [engine.submit(p, max_new_tokens=30, regex=REGEX) for p in ("a", "b c", "d e f")]
    assert [job.result().text for job in jobs] == alone


@pytest.mark.parametrize("settings", [{"temperature": 1.0, "seed": 7}, {"threshold": 0.0}])
def test_no_text_depends_on_what_was_asked_before(make_engine, settings):
    asked = {"max_new_tokens": 40, "json_schema": SCHEMA | {"additionalProperties": {}}} | settings
    alone = make_engine(model=toy()).generate("some words", **asked).text
    engine = make_engine(model=toy())
    for seed in range(3):
        engine.generate(f"other {seed}", **asked | {"temperature": 2.0, "seed": seed, "max_new_tokens": 33})
    assert engine.generate("some words", **asked).text == alone


def test_what_is_kept_counts_in_the_memory_budget(make_engine):
    engine = make_engine(model=toy(), memory_budget=150 << 20)
    engine.generate("x", max_new_tokens=4)
    with pytest.raises(Exception, match="E-MEM"):
        engine.generate("x", max_new_tokens=4, regex="a")


def test_a_cancelled_text_need_not_match(make_engine):
    engine = make_engine(model=toy())
    seen = []

    def cancel(event):
        seen.append(event)
        if len(seen) == 4:
            job.cancel()

    job = engine.submit("some words", max_new_tokens=40, regex="(ab){15}", sampler="static", on_event=cancel)
    assert job.result().stop_reason == "cancelled"


def test_parts_share_one_compiler():
    parts = toy_parts()
    assert replace(parts, device="cpu").constraints is parts.constraints
