"""The model in a process of its own: same results and errors, and a death that costs only its own jobs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dlm_edge.errors import InputFileError, JobError, UsageProblem
from dlm_edge.runtime import Engine, Finished, SubprocessEngine, Text

LONG = {"max_new_tokens": 480, "sampler": "static", "stop_at_eos": False}


@pytest.fixture(scope="module")
def folder(bundles):
    return bundles["sdar"][1]


@pytest.fixture(scope="module")
def remote(folder):
    with SubprocessEngine.open(folder, threads=1, parallel=2) as engine:
        yield engine


def test_results_are_those_of_the_engine(folder, remote):
    with Engine.open(folder, threads=1) as engine:
        for i in range(3):
            settings = {"max_new_tokens": 24, "temperature": 0.5, "seed": i}
            assert (
                remote.generate(f"prompt {i}", **settings).token_ids
                == engine.generate(f"prompt {i}", **settings).token_ids
            )
        assert remote.encode("some words") == engine.encode("some words")
        assert remote.spec == engine.spec and remote.device == "cpu" and remote.keeps_prompts == engine.keeps_prompts
    assert remote.stats().running == 0 and remote.process_id != os.getpid()


def test_a_guide_comes_along(folder):
    settings = {"sampler": "guided", "sampler_options": {"rule": "deterministic"}, "max_new_tokens": 16}
    with Engine.open(folder, threads=1, guide=folder) as engine:
        expected = engine.generate("some words", **settings)
    with SubprocessEngine.open(folder, threads=1, guide=Path(folder)) as engine:
        found = engine.generate("some words", **settings)
    assert found.token_ids == expected.token_ids and found.guide_passes == expected.guide_passes > 0


def test_a_stream_is_complete(remote):
    events = list(remote.stream("some words", max_new_tokens=40, stop_at_eos=False))
    assert isinstance(events[-1], Finished) and events[-1].result.new_tokens == 40
    assert "".join(e.text for e in events if isinstance(e, Text)) == events[-1].result.text


def test_cancel_keeps_the_text(remote):
    job = remote.submit([5, 6, 7], **LONG)
    next(iter(job))
    job.cancel()
    result = job.result(10)
    assert result.stop_reason == "cancelled" and result.new_tokens < 480 and job.state == "cancelled"


def test_what_a_callback_raises_cancels_its_job(remote):
    def on_event(event):
        raise ValueError("planted")

    job = remote.submit([5, 6, 7], on_event=on_event, **LONG)
    with pytest.raises(JobError, match="planted") as error:
        job.result(10)
    assert error.value.code == "E-CANCELLED"
    while remote.stats().running:
        time.sleep(0.01)


def test_errors_are_those_of_the_engine(folder, remote, tmp_path):
    with pytest.raises(UsageProblem, match="no setting 'nonsense'"):
        remote.generate("x", nonsense=1)
    with pytest.raises(UsageProblem) as error:
        remote.generate([10**9])
    assert error.value.code == "E-PROMPT"
    with pytest.raises(InputFileError) as missing:
        SubprocessEngine.open(tmp_path)
    assert missing.value.code == "E-MANIFEST"
    with pytest.raises(JobError) as crashed:
        SubprocessEngine.open(folder, command=[sys.executable, "-c", "import sys; sys.exit('no model here')"])
    assert crashed.value.code == "E-CRASH" and "no model here" in crashed.value.message


def test_prompt_caches(remote, tmp_path):
    remote.generate(list(range(5, 60)), max_new_tokens=16)
    kept = remote.save_prompt_cache(tmp_path / "kept")
    remote.forget_prompt()
    assert remote.load_prompt_cache(tmp_path / "kept") == kept > 0


def test_a_cancel_does_not_wait_behind_a_call(remote):
    job = remote.submit([5, 6, 7], **LONG)
    next(iter(job))
    asking = threading.Thread(target=remote.forget_prompt)  # it waits for the jobs before it
    asking.start()
    job.cancel()
    assert job.result(20).stop_reason == "cancelled"
    asking.join(20)
    assert not asking.is_alive()


def test_whatever_a_callback_raises_the_engine_lives_on(remote):
    def on_event(event):
        raise SystemExit("planted")

    with pytest.raises(Exception, match="planted"):
        remote.submit([5, 6, 7], on_event=on_event, **LONG).result(20)
    assert remote.generate([5, 6, 7], max_new_tokens=8, stop_at_eos=False).new_tokens == 8


def test_close_from_a_callback_is_refused(remote):
    seen = []

    def on_event(event):
        try:
            remote.close(wait=True)
        except UsageProblem as error:
            seen.append(error.code)

    remote.submit([5, 6, 7], on_event=on_event, max_new_tokens=8).result(20)
    assert set(seen) == {"E-REENTRANT"}


@pytest.mark.parametrize(
    ("prompt", "settings"), [("\ud800", {}), ([5], {"threshold": float("nan")}), ("a" * (65 << 20), {})]
)
def test_what_the_pipe_cannot_carry_is_refused(remote, prompt, settings):
    with pytest.raises(UsageProblem) as error:
        remote.generate(prompt, raw=isinstance(prompt, str), **settings)
    assert error.value.code in ("E-PARAM", "E-PROMPT")
    assert remote.generate([5, 6, 7], max_new_tokens=8, stop_at_eos=False).new_tokens == 8


def test_given_tokens(remote):
    found = remote.generate([5, 6, 7], max_new_tokens=4, fixed={1: 11}, stop_at_eos=False)
    assert found.token_ids[1] == 11


def test_a_child_that_speaks_otherwise_is_no_hang(folder):
    command = [sys.executable, "-c", "print('a banner', flush=True); import time; time.sleep(60)"]
    with pytest.raises(JobError, match="no answer") as error:
        SubprocessEngine.open(folder, command=command)
    assert error.value.code == "E-CRASH"


def test_a_killed_child_fails_its_jobs_and_the_next_one_works(folder):
    with SubprocessEngine.open(folder, threads=1, parallel=2) as engine:
        wanted = engine.generate("some words", max_new_tokens=16).token_ids
        first = engine.process_id
        jobs = [engine.submit([5, 6, i], **LONG) for i in (7, 8, 9)]
        next(iter(jobs[0]))
        os.kill(first, signal.SIGKILL)
        for job in jobs:
            with pytest.raises(JobError) as error:
                job.result(10)
            assert error.value.code == "E-CRASH" and job.state == "failed"
        assert engine.generate("some words", max_new_tokens=16).token_ids == wanted
        assert engine.process_id != first


def test_close_ends_the_process_whatever_it_does(folder):
    engine = SubprocessEngine.open(folder, threads=1)
    job, process = engine.submit([5, 6, 7], **LONG), engine._child.process
    closing = [threading.Thread(target=engine.close) for _ in range(3)]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join(10)
    assert process.poll() == 0 and job.result(1).stop_reason == "cancelled"
    with pytest.raises(UsageProblem) as error:
        engine.generate("x")
    assert error.value.code == "E-CLOSED"


def test_close_may_wait_for_the_jobs(folder):
    engine = SubprocessEngine.open(folder, threads=1)
    job = engine.submit([5, 6, 7], max_new_tokens=32, stop_at_eos=False)
    engine.close(wait=True)
    assert job.result(0).new_tokens == 32


def test_the_child_ends_with_its_parent(folder):
    script = f"""
import sys
from dlm_edge.runtime import SubprocessEngine
engine = SubprocessEngine.open({str(folder)!r}, threads=1)
engine.submit([5, 6, 7], **{LONG!r})
print(engine.process_id, flush=True)
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    child, deadline = int(found.stdout), time.monotonic() + 10
    while is_alive(child):
        assert time.monotonic() < deadline, "the child outlives its parent"
        time.sleep(0.05)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except OSError:
        return False


def test_the_protocol_is_one_json_object_a_line(folder):
    """As docs/pipe_protocol.md has it, without our client."""
    requests = [
        {"type": "open", "id": 1, "path": str(folder), "options": {"threads": 1}},
        {"type": "nonsense"},
        {"type": "submit", "id": 2, "prompt": [5, 6, 7], "settings": {"max_new_tokens": 8, "stop_at_eos": False}},
        {"type": "submit", "id": 3, "prompt": "x", "settings": {"top_p": 2}},
        {"type": "call", "id": 4, "verb": "encode", "arguments": {"prompt": "some words"}},
        {"type": "close", "wait": True},
    ]
    data = "".join(json.dumps(request) + "\n" for request in requests)
    child = [sys.executable, "-m", "dlm_edge.runtime.child"]
    found = subprocess.run(child, input=data, capture_output=True, text=True, timeout=60)
    answers = [json.loads(text) for text in found.stdout.splitlines()]
    assert found.returncode == 0
    by_id = {n: [a for a in answers if a["id"] == n] for n in range(5)}
    assert by_id[1][0]["type"] == "reply" and by_id[1][0]["value"]["protocol"] == 1
    assert by_id[0][0]["code"] == "E-JSON" and by_id[3][0]["code"] == "E-PARAM"
    events = [a["event"] for a in by_id[2]]
    assert events[0]["type"] == "started" and events[-1]["type"] == "finished"
    assert events[-1]["result"]["new_tokens"] == 8
    assert "".join(e["text"] for e in events if e["type"] == "text") == events[-1]["result"]["text"]
    assert isinstance(by_id[4][0]["value"], list)
