"""Key, Host and Origin: checked for every path, known or not, before anything else happens."""

from __future__ import annotations

import json

import pytest

from dlm_edge.server.gate import PUBLIC
from dlm_edge.server.options import ServerOptions
from tests.server.conftest import CHAT, KEY

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW")
VARIANTS = {
    "missing": [],
    "empty": [("authorization", "")],
    "wrong": [("authorization", "Bearer test-key-9876543210-fedcba")],
    "prefix": [("authorization", f"Bearer {KEY[:-1]}")],
    "longer": [("authorization", f"Bearer {KEY}0")],
    "other-case": [("authorization", f"Bearer {KEY.upper()}")],
    "inner-space": [("authorization", f"Bearer  {KEY}")],
    "no-scheme": [("authorization", KEY)],
    "other-scheme": [("authorization", f"Basic {KEY}")],
    "two-headers": [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")],
    "other-header": [("x-api-key", KEY), ("api-key", KEY)],
    "in-the-url": [],
}
OTHER_PATHS = (
    "/nothing",
    "/v1",
    "/v1/",
    "/health/",
    "//health",
    "/v1/models/toy",
    "/docs",
    "/favicon.ico",
    "/page.js/",
)


def paths(served):
    known = [route.path.replace("{name}", "toy") for route in served.api.routes()]
    return dict.fromkeys([*known, *OTHER_PATHS])


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_the_key_every_path_and_method_is_401(served, variant):
    seen = 0
    with served.client(key=None) as client:
        for path in paths(served):
            for method in METHODS:
                query = f"?key={KEY}&api_key={KEY}&token={KEY}" if variant == "in-the-url" else ""
                answer = client.request(method, served.url + path + query, headers=VARIANTS[variant])
                is_public = path in PUBLIC and method in ("GET", "HEAD")
                if is_public and not any(name == "authorization" for name, _ in VARIANTS[variant]):
                    assert answer.status_code == 200
                else:
                    assert answer.status_code == 401, (method, path)
                    assert answer.headers["www-authenticate"] == "Bearer"
                    if method != "HEAD":
                        assert answer.json()["error"]["code"] == "invalid_api_key"
                    seen += 1
    assert seen >= (len(paths(served)) - len(PUBLIC)) * len(METHODS)


def test_what_is_public_holds_nothing_of_the_model(served):
    with served.client(key=None) as client:
        assert client.get("/health").json() == {"status": "ok"}
        for path in PUBLIC - {"/health"}:
            assert "toy" not in client.get(path).text and KEY not in client.get(path).text


def test_with_the_key_paths_and_methods_are_told_apart(served):
    with served.client() as client:
        assert client.get("/nothing").status_code == 404
        assert client.get("/v1/chat/completions").status_code == 405
        assert client.get("/nothing").json()["error"].keys() == {"message", "type", "code", "param"}
        assert client.get("/v1/models", headers={"authorization": f"bearer {KEY}"}).status_code == 200


def test_each_key_of_several_is_good(serve):
    served = serve(keys=[KEY, "another-key-0123456789"])
    for key, status in ((KEY, 200), ("another-key-0123456789", 200), ("a-third-key-0123456789", 401)):
        with served.client(key=key) as client:
            assert client.get("/v1/models").status_code == status


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "10.0.0.1", "", "[::2]"])
@pytest.mark.parametrize("path", ["/health", "/", "/v1/models", "/nothing"])
@pytest.mark.parametrize("method", ["GET", "OPTIONS", "POST"])
def test_a_host_that_is_not_ours_is_403(served, host, path, method):
    with served.client() as client:
        answer = client.request(method, path, headers={"host": host})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1:8000", "[::1]:8000", "127.8.8.8"])
def test_names_of_this_machine_are_hosts(served, host):
    with served.client() as client:
        assert client.get("/health", headers={"host": host}).status_code == 200


def test_on_other_addresses_a_name_must_be_allowed():
    options = ServerOptions(model_name="m", host="0.0.0.0", allowed_hosts=frozenset({"box.lan"}))
    accepted = [
        name
        for name in ("box.lan", "192.168.1.5", "fe80::1", "localhost", "evil.example", "")
        if options.accepts_host(name)
    ]
    assert accepted == ["box.lan", "192.168.1.5", "fe80::1", "localhost"]


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://{host}", "http://{host}.evil.example", "file://"]
)
def test_pages_of_other_origins_are_403(served, origin):
    origin = origin.replace("{host}", "{}:{}".format(*served.address))
    with served.client() as client:
        for method, path in (("GET", "/health"), ("GET", "/v1/models"), ("POST", "/v1/chat/completions")):
            answer = client.request(method, path, headers={"origin": origin}, json=CHAT if method == "POST" else None)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
            assert "access-control-allow-origin" not in answer.headers
        asked = {"origin": origin, "access-control-request-method": "POST"}
        assert client.options("/v1/chat/completions", headers=asked).status_code == 403


def test_our_own_page_may_ask(served):
    with served.client() as client:
        answer = client.get("/v1/models", headers={"origin": served.url})
        assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers


def test_an_allowed_origin_may_ask_and_read(serve):
    served = serve(allowed_origins=frozenset({"https://app.example"}))
    with served.client(key=None) as client:
        asked = {
            "origin": "https://app.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, content-type, x-stainless-os, cookie",
        }
        answer = client.options("/v1/chat/completions", headers=asked)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert answer.headers["access-control-allow-headers"] == "authorization, content-type, x-stainless-os"
        assert "access-control-allow-credentials" not in answer.headers
        refused = client.get("/v1/models", headers={"origin": "https://app.example"})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://app.example"
        assert client.get("/health").headers["vary"] == "origin"
        assert client.get("/health", headers={"origin": "https://other.example"}).status_code == 403


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/nothing"])
@pytest.mark.parametrize("key", [KEY, None])
def test_safe_headers_are_on_every_answer(served, path, key):
    with served.client(key=key) as client:
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert "server" not in headers


def test_a_bug_is_a_500_without_its_message(serve, caplog, monkeypatch):
    served = serve()

    def broken():
        raise ValueError("/home/somebody/secret prompt")

    monkeypatch.setattr(served.engine, "stats", broken)
    with served.client() as client:
        answer = client.get("/metrics")
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "E-INTERNAL"
    assert "secret" not in answer.text + caplog.text and "ValueError at test_gate.py" in caplog.text
    monkeypatch.undo()
    with served.client() as client:
        assert client.get("/metrics").status_code == 200


def test_the_metrics_are_counts(serve):
    served = serve()
    with served.client() as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        client.get("/nothing")
        text = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['dlm_edge_generations_total{end="length"}'] == "1" and values["dlm_edge_new_tokens_total"] == "20"
    assert values['dlm_edge_responses_total{status="404"}'] == "1" and values["dlm_edge_requests_in_flight"] == "0"
    assert "some words" not in text and KEY not in text and all(float(value) >= 0 for value in values.values())


def test_refusals_are_json_of_openais_shape(served):
    with served.client(key=None) as client:
        error = json.loads(client.get("/v1/models").text)["error"]
    assert error == {
        "message": "this server needs its key: Authorization: Bearer KEY",
        "type": "authentication_error",
        "code": "invalid_api_key",
        "param": None,
    }
