"""Streams: committed text for everybody, the canvas for who asks, and an end whenever the client or the engine ends."""

from __future__ import annotations

import json
import socket

import pytest

from dlm_edge.errors import JobError
from tests.runtime.test_engine import GatedModel
from tests.runtime.toy import ToyModel
from tests.server.conftest import CHAT, KEY, wait_for
from tests.tiny import EOS_ID, MASK_ID, PAD_ID, VOCAB_SIZE

STREAM = CHAT | {"stream": True, "stream_options": {"include_usage": True}}


def events_of(lines):
    """(name, value) of every event, comments as ("", None)."""
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, (line[6:] if line == "data: [DONE]" else json.loads(line[6:]))
            name = ""
        elif line.startswith(":"):
            yield "", None


def stream(client, body=STREAM):
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        return list(events_of(answer.iter_lines()))


def request(body, close=False):
    data = json.dumps(body)
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n"
        f"{'connection: close' + chr(13) + chr(10) if close else ''}\r\n{data}"
    ).encode()


def test_the_canvas_replaces_and_the_text_grows(served):
    with served.client() as client:
        events = stream(client, STREAM | {"dlm": {"canvas": True, "threshold": 0.3}})
    frames = [value for name, value in events if name == "canvas"]
    text = "".join(v["choices"][0]["delta"].get("content", "") for n, v in events[:-1] if n == "" and v["choices"])
    assert text == served.engine.generate(CHAT["messages"], max_new_tokens=20, threshold=0.3).text
    assert events[-1] == ("", "[DONE]") and len(frames) >= 3
    assert {"step", "block", "n_blocks", "committed_tokens", "cells"} <= frames[0].keys()
    assert [f["step"] for f in frames] == sorted(f["step"] for f in frames)
    cells = [cell for frame in frames for cell in frame["cells"]]
    assert any(c["token_id"] is None for c in cells) and all(0 <= c["confidence"] <= 1 for c in cells)


def test_without_asking_there_is_no_canvas(served):
    with served.client() as client:
        assert {name for name, _ in stream(client)} == {""}


def test_the_first_event_comes_before_the_first_step(gated):
    with gated.client() as client, client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
        events = events_of(answer.iter_lines())
        _, first = next(events)
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        gated.gate.set()
        assert list(events)[-1] == ("", "[DONE]")


def test_comments_keep_a_silent_stream_alive(serve):
    model = GatedModel()
    served = serve(model, keep_alive_s=0.02)
    with served.client() as client, client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
        events = events_of(answer.iter_lines())
        next(events)
        assert [next(events) for _ in range(3)] == [("", None)] * 3
        model.gate.set()
        assert list(events)[-1] == ("", "[DONE]")


class FailingModel(ToyModel):
    """NaN's error in its n-th run."""

    def __init__(self, n):
        super().__init__(vocab=VOCAB_SIZE, forbid=[EOS_ID, PAD_ID, MASK_ID])
        self.n = n

    def run(self, *args, **options):
        if len(self.runs) == self.n:
            self.n = -1
            raise JobError("E-NUM", "NaN at /home/somebody/model", "secret prompt")
        return super().run(*args, **options)


def test_a_failure_is_an_event_and_no_success(serve, caplog):
    served = serve(FailingModel(6))
    with served.client() as client:
        events = stream(client)
        name, last = events[-1]
        assert name == "" and last["error"]["code"] == "E-NUM" and last["error"]["type"] == "server_error"
        assert not any(v.get("usage") for _, v in events) and "secret" not in str(events) + caplog.text
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        assert 'end="failed"} 1' in client.get("/metrics").text


def test_a_failure_without_a_stream_is_500(serve):
    served = serve(FailingModel(3))
    with served.client() as client:
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "E-NUM"
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "stream"])
def test_a_client_that_leaves_mid_step_frees_the_engine(gated, body):
    with gated.connect(request(body)):
        wait_for(gated.model_waits.is_set)
    gated.wait_until_idle()
    gated.gate.set()
    with gated.client() as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        assert 'end="cancelled"} 1' in client.get("/metrics").text


def test_a_client_that_leaves_the_queue_frees_its_place(gated):
    with gated.connect(request(STREAM)):
        wait_for(gated.model_waits.is_set)
        with gated.connect(request(STREAM)):
            wait_for(lambda: gated.engine.stats().queued == 1)
        wait_for(lambda: gated.api.admission.in_flight == 1)
        assert gated.engine.stats().running == 1
    gated.wait_until_idle()


def test_a_client_that_resets_before_anything_frees_its_place(gated):
    with gated.connect(request(STREAM)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # close with a reset
    gated.wait_until_idle()


def test_a_reader_that_stops_is_dropped_and_its_job_with_it(serve):
    model = GatedModel(free=200)  # steps with frames of 200 cells each: more than all buffers take
    served = serve(model, family="llada", send_s=0.1)
    large = STREAM | {"max_tokens": 400, "dlm": {"canvas": True, "sampler": "static", "block_length": 200}}
    with served.connect(request(large), receive_buffer=4096):
        wait_for(lambda: served.api.metrics.ended["cancelled"] == 1)
        served.wait_until_idle()
        assert not served.server.server_state.connections


def test_what_the_engine_cancels_at_its_end_is_no_answer(gated):
    with gated.client() as client, client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
        events = events_of(answer.iter_lines())
        next(events)
        gated.server.should_exit = True  # after the grace time the job is cancelled
        assert list(events)[-1][1]["error"]["code"] == "stopping"
    gated.stop()


def test_a_stream_that_ends_in_the_grace_time_is_complete(serve):
    model = GatedModel()
    served = serve(model, grace_s=30)
    with served.client() as client, client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
        events = events_of(answer.iter_lines())
        next(events)
        served.server.should_exit = True
        wait_for(lambda: not refuses_nothing(served))
        model.gate.set()
        assert list(events)[-1] == ("", "[DONE]")
    served.stop()


def refuses_nothing(served):
    try:
        with served.connect():
            return True
    except ConnectionRefusedError:
        return False
