"""OpenAI's own Python client against a real server with a tiny bundle: its texts are those of the engine."""

from __future__ import annotations

import pytest

openai = pytest.importorskip("openai", reason="needs the openai package")

from dlm_edge.runtime.engine import Engine  # noqa: E402
from tests.server.conftest import KEY, start  # noqa: E402

MESSAGES = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def tiny(tiny_bundle):
    served = start(Engine.open(tiny_bundle, threads=1, parallel=2), model_name="tiny")
    yield served
    served.engine.close()
    served.stop()


@pytest.fixture(scope="module")
def client(tiny):
    with openai.OpenAI(api_key=KEY, base_url=tiny.url + "/v1", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def expected(tiny):
    return tiny.engine.generate(MESSAGES, max_new_tokens=30)


def test_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "local")
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_chat_answer_is_the_engines(client, expected):
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=30)
    (choice,) = answer.choices
    assert choice.message.content == expected.text and choice.message.role == "assistant"
    assert choice.finish_reason == "length" and answer.object == "chat.completion"
    assert answer.usage.completion_tokens == 30 and answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.model_extra["dlm"]["steps"] == expected.steps
    keys = {"steps", "forward_passes", "seconds", "tokens_per_s", "seed", "stop_reason", "density"}
    assert answer.model_extra["dlm"].keys() == keys


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_stream_is_the_same_text(client, expected, include_usage):
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    chunks = list(
        client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=30, stream=True, **options)
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected.text
    assert chunks[0].choices[0].delta.role == "assistant" and len({c.id for c in chunks}) == 1
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert finishes[-1] == "length" and set(finishes[:-1]) == {None}
    usages = [c.usage for c in chunks if c.usage]
    assert [u.completion_tokens for u in usages] == ([30] if include_usage else [])
    assert chunks[-1].model_extra["dlm"]["steps"] == expected.steps


def test_completions(client, tiny):
    wanted = tiny.engine.generate("Once upon", raw=True, max_new_tokens=20).text
    assert client.completions.create(model="tiny", prompt="Once upon", max_tokens=20).choices[0].text == wanted
    ids = tiny.engine.encode("Once upon", raw=True)
    assert client.completions.create(model="tiny", prompt=ids, max_tokens=20).choices[0].text == wanted
    chunks = client.completions.create(model="tiny", prompt="Once upon", max_tokens=20, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == wanted


def test_settings_reach_the_engine(client, tiny):
    asked = {"temperature": 0.9, "top_p": 0.8, "seed": 11, "stop": "s"}
    own = {"sampler": "static", "steps": 6, "attention": "quest", "budget": 8}
    wanted = tiny.engine.generate(MESSAGES, max_new_tokens=16, **asked, **own)
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_completion_tokens=16, **asked, extra_body={"dlm": own}
    )
    assert answer.choices[0].message.content == wanted.text
    assert answer.model_extra["dlm"]["seed"] == 11 and answer.model_extra["dlm"]["steps"] == wanted.steps


def test_a_stop_string_is_a_finish(client, expected):
    stop = expected.text[5:7]
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=30, stop=[stop])
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == expected.text[: expected.text.index(stop)]


@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        ({"max_tokens": 0}, "E-PARAM", "max_tokens"),
        ({"temperature": -1}, "E-PARAM", "temperature"),
        ({"seed": -1}, "E-PARAM", "seed"),
        ({"seed": 2**64}, "E-PARAM", "seed"),
        ({"top_p": 0.5}, "E-PARAM", "top_p"),
        ({"max_tokens": 10_000}, "context_length_exceeded", None),
        ({"n": 3}, "unsupported_value", "n"),
        ({"extra_body": {"dlm": {"steps": 0}}}, "E-PARAM", "dlm.steps"),
        ({"extra_body": {"dlm": {"attention": "quset"}}}, "E-PARAM", "dlm.attention"),
        ({"extra_body": {"dlm": {"budget": 1.5}}}, "E-PARAM", "dlm.budget"),
        ({"extra_body": {"dlm": {"cfg_scale": -1}}}, "E-PARAM", "dlm.cfg_scale"),
        ({"extra_body": {"dlm": {"cfg_scale": "much"}}}, "E-PARAM", "dlm.cfg_scale"),
        ({"extra_body": {"dlm": {"sampler": "treshold"}}}, "E-PARAM", "dlm.sampler"),
        (
            {"extra_body": {"dlm": {"sampler": "eb", "sampler_options": {"gamma": -1}}}},
            "E-PARAM",
            "dlm.sampler_options.gamma",
        ),
        ({"extra_body": {"dlm": {"fixed": {"0": 10**9}}}}, "E-PROMPT", None),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "E-PROMPT", None),
        ({"stop": [""]}, "E-PARAM", None),
        ({"stream": True, "max_tokens": 0}, "E-PARAM", "max_tokens"),
        ({"extra_body": {"dlm": {"sampler_options": {"gamma": 1}}}}, "E-PARAM", "dlm.sampler_options.gamma"),
    ],
)
def test_what_the_engine_refuses_is_400(client, options, code, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**({"model": "tiny", "messages": MESSAGES} | options))
    assert (error.value.code, error.value.param) == (code, param)


def test_other_errors_have_the_clients_classes(client, tiny):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="other", messages=MESSAGES)
    assert error.value.code == "model_not_found"
    wrong = openai.OpenAI(api_key="wrong-key-0123456789", base_url=tiny.url + "/v1", max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()


def test_leaving_a_stream_frees_the_engine(client, tiny):
    with client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=400, stream=True, extra_body={"dlm": {"sampler": "static"}}
    ) as stream:
        next(iter(stream))
    tiny.wait_until_idle()
