"""OpenAI's fields: mapped to our settings, known to change nothing, or refused by name."""

from __future__ import annotations

import pytest

from dlm_edge.server.refusals import Refusal
from dlm_edge.server.schema import NO_EFFECT, read_chat, read_completion

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields):
    return read_chat({"messages": MESSAGES} | fields, "toy")


def refused(read, **fields):
    with pytest.raises(Refusal) as caught:
        read(**fields)
    return caught.value


def completion(**fields):
    return read_completion({"prompt": "hi"} | fields, "toy")


def test_openais_names_become_ours():
    asked = chat(
        model="toy", max_tokens=5, temperature=0.5, top_p=0.9, seed=3, stop=["a"], dlm={"steps": 4, "threshold": None}
    )
    wanted = {"max_new_tokens": 5, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["a"], "steps": 4}
    assert asked.settings == wanted and asked.prompt == MESSAGES and not asked.stream
    assert chat(max_completion_tokens=7).settings == {"max_new_tokens": 7}
    assert chat(stream=True, stream_options={"include_usage": True}, dlm={"canvas": True}).canvas
    assert completion(suffix="end", max_tokens=4).settings == {"suffix": "end", "max_new_tokens": 4}
    assert chat(dlm={"fixed": {"3": 17}}).settings == {"fixed": {3: 17}}


def test_a_samplers_own_settings_are_passed_on():
    own = {"sampler": "eb", "sampler_options": {"gamma": 0.3, "rule": "each", "threshold": None}, "cfg_scale": 1.5}
    asked = chat(dlm=own)
    assert asked.settings == own | {"sampler_options": {"gamma": 0.3, "rule": "each"}}
    assert (
        asked.param_names["gamma"] == "dlm.sampler_options.gamma" and asked.param_names["cfg_scale"] == "dlm.cfg_scale"
    )
    texts = {"sampler_options": {"delimiters": ["a", "b"]}}
    assert chat(dlm=texts).settings == texts and chat(dlm={"sampler_options": {}}) == chat()


@pytest.mark.parametrize("name", NO_EFFECT)
def test_what_has_no_effect_has_none(name):
    assert chat(**{name: "x"}) == chat()


def test_null_and_neutral_values_are_absent():
    neutral = {"n": 1, "logprobs": False, "frequency_penalty": 0.0, "logit_bias": {}, "tools": [], "top_logprobs": 0}
    assert chat(**neutral, temperature=None, stop=None, response_format={"type": "text"}) == chat()
    assert completion(echo=False, best_of=1, logprobs=None) == completion()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"tools": [{}]}, "tools"),
    ],
)
def test_what_we_do_not_have_is_refused(fields, param):
    refusal = refused(chat, **fields)
    assert (refusal.status, refusal.code, refusal.param) == (400, "unsupported_value", param)


@pytest.mark.parametrize(
    ("fields", "param", "advice"),
    [
        ({"max_token": 5}, "max_token", "did you mean max_tokens?"),
        ({"temprature": 5}, "temprature", "did you mean temperature?"),
        ({"dlm": {"threshhold": 1}}, "dlm.threshhold", "did you mean dlm.threshold?"),
        ({"dlm": {"seed": 1}}, "dlm.seed", ""),
        (
            {"dlm": {"sampler_options": {"gama": 1}}},
            "dlm.sampler_options.gama",
            "did you mean dlm.sampler_options.gamma?",
        ),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "include_usage"),
        ({"echo": False}, "echo", ""),
        ({"messages": [{"role": "user", "content": "x", "nme": "y"}]}, "messages[0].nme", ""),
        ({"x" * 5000: 1}, "x" * 80, ""),
    ],
)
def test_unknown_fields_are_named_with_the_nearest(fields, param, advice):
    refusal = refused(chat, **fields)
    assert (refusal.status, refusal.code, refusal.param) == (400, "unknown_parameter", param)
    assert advice in refusal.message and len(refusal.message) < 300


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [[]]}, "messages[0]"),
        ({"messages": MESSAGES * 1001}, "messages"),
        ({"messages": [{"role": 1, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"dlm": []}, "dlm"),
        ({"dlm": {"canvas": True}}, "dlm.canvas"),
        ({"dlm": {"sampler_options": [1]}}, "dlm.sampler_options"),
        ({"dlm": {"sampler_options": {"gamma": {}}}}, "dlm.sampler_options.gamma"),
        ({"dlm": {"sampler_options": {"delimiters": ["a", 1]}}}, "dlm.sampler_options.delimiters"),
        ({"dlm": {"fixed": {"-1": 5}}}, "dlm.fixed"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_completion_tokens"),
    ],
)
def test_wrong_values_are_named(fields, param):
    refusal = refused(chat, **fields)
    assert (refusal.status, refusal.param) == (400, param)


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("asked", "schema"),
    [
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}, SCHEMA),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA, "description": "y"}}, SCHEMA),
    ],
)
def test_a_response_format_becomes_a_schema(asked, schema):
    assert chat(response_format=asked).settings == {"json_schema": schema}
    assert chat(dlm={"regex": "a+"}).settings == {"regex": "a+"}
    assert completion(dlm={"json_schema": schema}).settings == {"json_schema": schema}


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"type": "xml"}, "response_format.type"),
        ([], "response_format"),
        ({"type": "json_object", "schema": {}}, "response_format.schema"),
        ({"type": "json_schema"}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": "{}"}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}}, "response_format.json_schema.strict"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "strct": True}}, "response_format.json_schema.strct"),
    ],
)
def test_a_response_format_that_is_no_such_thing_is_refused(asked, param):
    refusal = refused(chat, response_format=asked)
    assert (refusal.status, refusal.param) == (400, param)
    assert refused(chat, response_format={"type": "json_object"}, dlm={"json_schema": {}}).param == "response_format"
    assert refused(completion, response_format={"type": "json_object"}).param == "response_format"


@pytest.mark.parametrize("prompt", [None, [], ["a", "b"], [[1], [2]], [1, "a"], {}, 5])
def test_a_completion_has_one_prompt(prompt):
    assert refused(completion, prompt=prompt).param == "prompt"


def test_prompts_are_texts_or_ids():
    assert completion(prompt=["hi"]).prompt == "hi" and completion(prompt=[[1, 2]]).prompt == [1, 2]
    assert completion().raw and not completion(prompt=[1, 2]).raw and not chat().raw


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts, "refusal": None}]).prompt[0]["content"] == "ab"


def test_another_model_is_not_found():
    refusal = refused(chat, model="gpt-4o")
    assert (refusal.status, refusal.code, refusal.param) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("given", "kept"), [((0, 0.5), False), ((0.7, 1), False), ((0.7, 1.0), False), ((0.7, 0.5), True)]
)
def test_top_p_that_changes_nothing_by_definition_is_left_out(given, kept):
    temperature, top_p = given
    assert ("top_p" in chat(temperature=temperature, top_p=top_p).settings) is kept


@pytest.mark.parametrize("top_p", [0, -1, 2, True, "1"])
def test_top_p_out_of_range_reaches_the_engine(top_p):
    assert chat(temperature=0, top_p=top_p).settings["top_p"] is top_p


def test_a_drawn_seed_fits_a_number_of_javascript():
    seeds = {chat(temperature=0.5).settings["seed"] for _ in range(20)}
    assert len(seeds) == 20 and max(seeds) < 2**53
    assert "seed" not in chat(temperature=0).settings and chat(temperature=1, seed=2**60).settings["seed"] == 2**60
