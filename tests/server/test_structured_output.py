"""Structured output over HTTP: valid answers, refusals with 400, and compiling that holds nobody else up."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.runtime.toy import ToyModel
from tests.server.conftest import wait_for
from tests.tiny import MASK_ID, PAD_ID, VOCAB_SIZE

MESSAGES = [{"role": "user", "content": "some words"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}, "required": ["b"]}
WRAPPED = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}


def post(served, **fields):
    with served.client() as client:
        return client.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 40} | fields)


def content(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


@pytest.fixture
def server(serve):
    return serve(ToyModel(vocab=VOCAB_SIZE, forbid=[PAD_ID, MASK_ID]))


def test_answers_meet_what_was_asked(server):
    assert isinstance(json.loads(content(post(server, response_format={"type": "json_object"}))), dict)
    value = json.loads(content(post(server, response_format=WRAPPED, dlm={"threshold": 0})))
    assert isinstance(value["b"], bool)
    assert re.fullmatch("(yes|no)!", content(post(server, dlm={"regex": "(yes|no)!"})))
    assert content(post(server, dlm={"grammar": 'root ::= "ab" | "ac"'})) in ("ab", "ac")


def hostile_schemas():
    twice = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": {}}
    yield {"$ref": "#/$defs/d0", "$defs": twice}
    yield {"type": "array", "maxItems": 2**63}
    yield {"type": "string", "pattern": "(a?){0,9000}(b?){0,9000}" * 50}
    yield {"type": "string", "pattern": "(" * 200 + ")" * 200}
    yield {"patternProperties": {}}
    yield {"$ref": "#"}


def test_hostile_constraints_are_refused_and_others_are_served_meanwhile(server):
    asked = [{"type": "json_schema", "json_schema": {"name": "x", "schema": s}} for s in hostile_schemas()]
    with ThreadPoolExecutor(3) as threads, server.client() as client:
        waiting = [threads.submit(post, server, response_format=each) for each in asked]
        while not all(each.done() for each in waiting):
            assert client.get("/health").status_code == 200
    for each in waiting:
        response = each.result()
        assert response.status_code == 400, response.text
        assert response.json()["error"]["code"] == "E-PARAM"
    wait_for(lambda: server.api.admission.in_flight == 0)
    assert content(post(server, dlm={"regex": "a"})) == "a"


def test_what_contradicts_itself_is_named(server):
    for fields, word in (
        ({"response_format": {"type": "json_object"}, "stop": ["x"]}, "stop"),
        ({"response_format": WRAPPED, "max_tokens": 2}, "max_new_tokens"),
        ({"response_format": WRAPPED, "dlm": {"regex": "a"}}, "regex"),
    ):
        response = post(server, **fields)
        assert response.status_code == 400 and word in response.json()["error"]["message"]
