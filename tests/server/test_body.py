"""Bodies that are too large, too slow, too deep or no JSON: refused before a route sees them."""

from __future__ import annotations

import json

import pytest

from tests.server.conftest import CHAT, KEY

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/nothing")
TYPE = {"content-type": "application/json"}


def error_of(answer):
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("data", "headers", "expected"),
    [
        (b"{}" + b" " * (1 << 20), {}, (413, "body_too_large")),
        (b"{}", {"content-type": "text/plain"}, (415, "content_type_not_supported")),
        (b"{}", {"content-type": "application/x-www-form-urlencoded"}, (415, "content_type_not_supported")),
        (b"{}", {"content-encoding": "gzip"}, (415, "content_encoding_not_supported")),
        (b"{", {}, (400, "invalid_json")),
        (b"", {"content-length": "0"}, None),
        (b'{"a": 1, "a": 2}', {}, (400, "invalid_json")),
        (b'{"a": NaN}', {}, (400, "invalid_json")),
        (b'{"a": 1e999}', {}, (400, "invalid_json")),
        (b'{"a": "\xff"}', {}, (400, "invalid_json")),
        (b"[" * 40 + b"]" * 40, {}, (400, "invalid_json")),
        (b"[" * 200_000, {}, (400, "invalid_json")),
    ],
)
def test_bad_bodies(served, path, data, headers, expected):
    with served.client() as client:
        answer = client.post(path, content=data, headers=TYPE | headers)
    if expected is None:
        expected = {"/v1/models": (405, "method_not_allowed"), "/nothing": (404, "not_found")}.get(
            path, (400, "invalid_value")
        )
    assert error_of(answer) == expected


def test_the_depth_that_is_allowed_reaches_the_route(served):
    with served.client() as client:
        answer = client.post("/v1/completions", content=b'{"prompt":' + b"[" * 31 + b"]" * 31 + b"}", headers=TYPE)
    assert answer.json()["error"]["param"] == "prompt"


def test_an_endless_chunked_body_ends_at_the_limit(served):
    def chunks():
        while True:
            yield b" " * 65536

    with served.client() as client:
        answer = client.post("/v1/completions", content=chunks(), headers=TYPE)
    assert error_of(answer) == (413, "body_too_large")


def test_a_body_that_does_not_come_is_408(serve):
    served = serve(body_s=0.1)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
    head += "content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    with served.connect(head.encode()) as sock:
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408") and b"body_timeout" in answer and b"connection: close" in answer
    served.wait_until_idle()


def test_length_and_chunks_together_are_refused(served):
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
    head += "content-type: application/json\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n"
    with served.connect(head.encode()) as sock:
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1 ") == 1


def test_the_connection_survives_a_good_body(served):
    with served.client() as client:
        for _ in range(3):
            answer = client.post("/v1/chat/completions", content=json.dumps(CHAT), headers=TYPE)
            assert answer.status_code == 200 and "connection" not in answer.headers
