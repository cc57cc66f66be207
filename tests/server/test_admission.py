"""The queue has an end, and no client gets all of it."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from tests.runtime.test_engine import GatedModel
from tests.server.conftest import CHAT, KEY, LIMIT_S, wait_for
from tests.server.test_streams import STREAM, events_of, request

OTHER = "other-key-0123456789-abcdef"


def test_beyond_the_queue_is_503_and_then_there_is_room_again(serve):
    model = GatedModel()
    served = serve(model, queue=2, per_client=9)
    with served.client() as client, ExitStack() as open_streams:
        streams = [open_streams.enter_context(served.connect(request(STREAM, close=True))) for _ in range(3)]
        wait_for(lambda: served.api.admission.in_flight == 3)
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/health").status_code == client.get("/v1/models").status_code == 200
        model.gate.set()
        for sock in streams:
            assert b"".join(iter(lambda sock=sock: sock.recv(65536), b"")).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        served.wait_until_idle()
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_one_client_cannot_take_all(serve):
    model = GatedModel()
    served = serve(model, keys=[KEY, OTHER], per_client=2)
    with ExitStack() as open_streams:
        for _ in range(2):
            open_streams.enter_context(served.connect(request(STREAM)))
        wait_for(lambda: served.api.admission.in_flight == 2)
        with served.client() as client:
            answer = client.post("/v1/completions", json={"prompt": "x"})
            assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
            assert int(answer.headers["retry-after"]) >= 1
        with served.client(key=OTHER) as other:
            with other.stream("POST", "/v1/chat/completions", json=STREAM) as stream:
                model.gate.set()
                assert list(events_of(stream.iter_lines()))[-1] == ("", "[DONE]")


def test_refused_requests_leave_nothing_behind(serve):
    served = serve(per_client=1)
    with served.client() as client:
        for body in ({}, {"messages": []}, CHAT | {"n": 2}, CHAT | {"temperature": -1}, CHAT | {"max_tokens": 10**6}):
            assert client.post("/v1/chat/completions", json=body).status_code == 400
        assert client.post("/nothing", json={}).status_code == 404
        assert served.api.admission.in_flight == 0 and not served.api.admission.by_client
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_without_keys_clients_are_addresses(serve):
    model = GatedModel()
    served = serve(model, keys=None, per_client=1)
    with served.connect(request(STREAM)):
        wait_for(lambda: served.api.admission.in_flight == 1)
        with served.client(key=None) as client:
            assert client.post("/v1/chat/completions", json=CHAT).status_code == 429
    served.wait_until_idle()
    model.gate.set()


def test_while_a_prompt_is_encoded_others_are_answered(serve, monkeypatch):
    served = serve()
    entered, go_on = threading.Event(), threading.Event()
    submit = served.engine.submit

    def slow(*args, **options):
        entered.set()
        go_on.wait(LIMIT_S)
        return submit(*args, **options)

    monkeypatch.setattr(served.engine, "submit", slow)
    with served.connect(request(STREAM, close=True)) as sock, served.client() as client:
        assert entered.wait(LIMIT_S)
        assert client.get("/health").status_code == client.get("/v1/models").status_code == 200
        go_on.set()
        assert b"[DONE]" in b"".join(iter(lambda: sock.recv(65536), b""))
