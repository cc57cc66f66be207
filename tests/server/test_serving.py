"""`dlm-edge serve` as a process: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import httpx
import pytest

from dlm_edge.cli import main
from dlm_edge.errors import UsageProblem
from dlm_edge.server import ServerOptions, listen
from tests.server.conftest import CHAT, LIMIT_S, wait_for
from tests.server.test_streams import STREAM, request

posix_only = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")


@pytest.fixture
def process(tiny_bundle, tmp_path):
    environment = os.environ | {"XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "dlm_edge", "serve", str(tiny_bundle), "--port", "0", "--threads", "1", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, **pipes) as running:
        yield running
        running.kill()


@posix_only
def test_a_server_from_first_start_to_last_word(process):
    assert process.stdout and process.stderr
    said = json.loads(process.stdout.readline())
    assert said["model"] == "tiny" and said["process"] == process.pid and said["url"].startswith("http://127.0.0.1:")
    with open(said["key_file"], encoding="ascii") as file:
        key = file.read().strip()
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=said["url"], headers=headers, timeout=LIMIT_S, trust_env=False) as client:
        secret = {"messages": [{"role": "user", "content": "xyzzy-secret"}], "max_tokens": 4}
        assert client.post("/v1/chat/completions", json=secret).json()["usage"]["completion_tokens"] == 4
        assert client.get("/xyzzy-path", headers={"authorization": "Bearer xyzzy-wrong"}).status_code == 401
        assert client.post("/v1/chat/completions", content="{xyzzy").status_code == 415
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
    log = process.stderr.read()
    assert "random key was written to" in log and key not in log and "xyzzy" not in log and "Traceback" not in log


def test_the_second_signal_ends_it_at_once(gated):
    object.__setattr__(gated.api.options, "grace_s", LIMIT_S * 10)
    gated.server.config.timeout_graceful_shutdown = LIMIT_S * 10
    with gated.connect(request(STREAM)):
        wait_for(gated.model_waits.is_set)
        gated.server.handle_exit(signal.SIGINT, None)
        wait_for(lambda: not gated.server.servers[0].is_serving())
        assert gated.thread.is_alive() and gated.engine.stats().running == 1
        gated.server.handle_exit(signal.SIGTERM, None)
        gated.thread.join(LIMIT_S)
        assert not gated.thread.is_alive()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--no-key", "--host", "0.0.0.0"], "let everybody in"),
        (["--no-key", "--key-file", "keys"], "exclude each other"),
        (["--allow-origin", "*"], "no origin of a web page"),
        (["--allow-origin", "https://app.example/path"], "no origin of a web page"),
        (["--allow-origin", "null"], "no origin of a web page"),
        (["--queue", "-1"], "queue is -1"),
        (["--key-file", "nowhere"], "nowhere"),
        (["--prot", "1"], "--port"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_is_opened(arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    bundle = tmp_path / "no-bundle"
    assert main(["serve", str(bundle), *arguments]) in (2, 3)
    assert reason in capsys.readouterr().err


def test_an_address_that_is_not_ours_is_named():
    with pytest.raises(UsageProblem, match="cannot listen on 203.0.113.7"):
        listen("203.0.113.7", 0)


def test_a_port_in_use_is_named():
    with listen("127.0.0.1", 0) as first:
        first.listen()
        with pytest.raises(UsageProblem, match="cannot listen on 127.0.0.1"):
            listen("127.0.0.1", first.getsockname()[1])


def test_options_know_loopback():
    def is_loopback(host):
        return ServerOptions(model_name="m", host=host).is_loopback

    assert [
        h for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "192.168.0.1", "host.lan") if is_loopback(h)
    ] == [
        "127.0.0.1",
        "::1",
        "localhost",
    ]


@posix_only
def test_a_key_that_others_can_read_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "dlm-edge").mkdir()
    path = tmp_path / "dlm-edge" / "server-key"
    path.write_text("a-good-key-0123456789\n")
    path.chmod(0o644)
    assert main(["serve", "no-bundle"]) == 2
    said = capsys.readouterr().err
    assert "chmod 600" in said and "a-good-key" not in said


def test_chat_needs_a_template(serve):
    served = serve()
    object.__setattr__(served.engine.parts, "template", None)
    with served.client() as client:
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 400 and "use /v1/completions" in answer.json()["error"]["message"]
        assert client.get("/v1/models").json()["data"][0]["dlm"]["attention"]
