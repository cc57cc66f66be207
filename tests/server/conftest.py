"""Real servers on loopback ports, around engines on the toy model or on a tiny bundle."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest

pytest.importorskip("uvicorn", reason="needs the extra server")
from dlm_edge.runtime.engine import Engine
from dlm_edge.server import Api, HttpServer, Keys, ServerOptions, listen
from tests.runtime.conftest import toy_parts
from tests.runtime.test_engine import GatedModel
from tests.tiny import make_checkpoint

KEY = "test-key-0123456789-abcdef"
CHAT = {"messages": [{"role": "user", "content": "some words"}], "max_tokens": 20}
LIMIT_S = 30.0  # for what should happen at once, on a machine that is busy


@dataclass
class Served:
    server: HttpServer
    engine: Engine
    url: str
    thread: threading.Thread

    @property
    def api(self):
        return self.server.api

    @property
    def address(self):
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    @contextmanager
    def client(self, key=KEY, **options):
        headers = {"authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(base_url=self.url, headers=headers, timeout=LIMIT_S, trust_env=False, **options) as client:
            yield client

    @contextmanager
    def connect(self, text=b"", receive_buffer=None):
        with socket.socket() as sock:
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.settimeout(LIMIT_S)
            sock.connect(self.address)
            sock.sendall(text)
            yield sock

    def wait_until_idle(self):
        wait_for(lambda: self.engine.stats().running == self.engine.stats().queued == self.api.admission.in_flight == 0)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive(), "the server did not stop"


def wait_for(condition):
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.005)


def start(engine, keys=(KEY,), **options):
    served = ServerOptions(**({"model_name": "toy"} | options))
    sock = listen(served.host, 0)
    began = threading.Event()
    server = HttpServer(Api(engine, served, created=1), Keys.of(list(keys)) if keys else None, began.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    assert began.wait(LIMIT_S)
    return Served(server, engine, "http://{}:{}".format(*sock.getsockname()), thread)


@pytest.fixture
def serve():
    """serve(model, family, keys=[...], **options of ServerOptions)"""
    running = []

    def run(model=None, *, family="sdar", **options):
        engine = Engine(toy_parts(family, model))
        running.append(start(engine, **options))
        return running[-1]

    yield run
    for served in running:
        served.engine.close()
        served.stop()


@pytest.fixture(scope="module")
def served():
    """One server for tests that leave it as it was."""
    running = start(Engine(toy_parts()))
    yield running
    running.engine.close()
    running.stop()


@pytest.fixture
def gated(serve):
    """A server whose model stops before its first step; `.gate` lets it go on."""
    model = GatedModel()
    running = serve(model, grace_s=0.2)
    running.gate = model.gate
    running.model_waits = model.waiting
    yield running
    model.gate.set()


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory):
    export = pytest.importorskip("dlm_edge.export", reason="needs onnx").export
    folder = tmp_path_factory.mktemp("served")
    export(str(make_checkpoint(folder / "sdar", "sdar")), str(folder / "tiny"))
    return folder / "tiny"
