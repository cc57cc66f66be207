"""Connections below HTTP: slow, silent, broken or of another protocol."""

from __future__ import annotations

import pytest

from tests.server.conftest import KEY, wait_for

GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


def read_all(sock):
    try:
        return b"".join(iter(lambda: sock.recv(65536), b""))
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("start", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: local", GET + b"GET / HTTP/1.1\r\nho"])
def test_headers_that_do_not_come_end_the_connection(serve, start):
    served = serve(header_s=0.1, idle_s=0.1)
    with served.connect(start) as sock:
        assert read_all(sock).count(b"HTTP/1.1 200") == start.count(GET)
    wait_for(lambda: not served.server.server_state.connections)


def test_headers_that_trickle_have_one_time_for_all(serve):
    served = serve(header_s=0.2)
    with served.connect() as sock:
        for _ in range(10_000):
            try:
                sock.sendall(b"x")
            except OSError:
                break
        wait_for(lambda: not served.server.server_state.connections)


def test_two_hundred_slow_clients_do_not_lock_the_others_out(serve):
    from contextlib import ExitStack

    served = serve()
    with ExitStack() as slow:
        for _ in range(200):
            slow.enter_context(served.connect(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx: "))
        with served.client() as client:
            assert client.get("/v1/models").status_code == 200
            assert client.post("/v1/completions", json={"prompt": "x", "max_tokens": 4}).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"GET /health\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 70_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx y: z\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_request_of_ours_is_4xx_and_closed(served, data):
    with served.connect(data) as sock:
        answer = read_all(sock)
    assert answer == b"" or answer.split(b" ", 2)[1].startswith((b"4", b"501")), answer[:200]
    with served.client() as client:
        assert client.get("/health").status_code == 200


def test_garbage_behind_a_request_ends_the_connection_only(gated):
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
    body = b'{"prompt": "x", "stream": true}'
    data = head.encode() + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    with gated.connect(data + b"\0\1\2 garbage\r\n\r\n") as sock:
        sock.recv(1)
    gated.wait_until_idle()
    with gated.client() as client:
        assert client.get("/health").status_code == 200


def test_many_requests_on_one_connection(served):
    with served.connect(GET * 5) as sock:
        data = b""
        while data.count(b'{"status":"ok"}') < 5:
            data += sock.recv(65536)
