"""`dlm-edge generate`: what goes to stdout in each form, and how Ctrl-C ends."""

import json
import os
import signal
import sys
import threading

import pytest

pytest.importorskip("click", reason="needs the cli extra")
pytest.importorskip("rich", reason="needs the cli extra")

from dlm_edge.cli import main
from dlm_edge.cli.generate import read_prompt, show, stop_on_interrupt
from dlm_edge.errors import DlmEdgeError
from tests.runtime.test_engine import GatedModel

KEYS = {
    "text", "token_ids", "prompt_tokens", "new_tokens", "stop_reason", "steps", "forward_passes", "steps_per_token",
    "prefill_seconds", "prefill_passes", "reused_tokens", "seconds", "effective_tokens_per_s", "blocks", "density",
    "active_rows", "pages_read", "seed", "guide_passes",
}  # fmt: skip


@pytest.fixture
def generate(bundles, capsys):
    def run(*arguments, family="sdar", code=0):
        assert main(["generate", str(bundles[family][1]), "--max-new-tokens", "16", *arguments]) == code
        return capsys.readouterr()

    return run


def test_pipe_gets_the_text_and_nothing_else(generate):
    text = json.loads(generate("-p", "hello", "--json").out)["text"]
    output = generate("-p", "hello")
    assert output.out == text + "\n" and output.err == ""


def test_json_has_every_key(generate):
    result = json.loads(generate("-p", "hello", "--json", "--steps", "5").out)
    assert result.keys() == KEYS and result["steps"] == 5 and result["new_tokens"] == 16


def test_json_lines_are_events(generate):
    events = [json.loads(line) for line in generate("-p", "hello", "--json-lines").out.splitlines()]
    assert events[0]["type"] == "started" and events[-1]["type"] == "finished"
    text = "".join(e["text"] for e in events if e["type"] == "text")
    assert text == events[-1]["result"]["text"]


def test_ids_files_and_raw(generate, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("hello", encoding="utf-8")
    plain = json.loads(generate("-p", "hello", "--json").out)["token_ids"]
    assert json.loads(generate("--prompt-file", str(file), "--json").out)["token_ids"] == plain
    assert json.loads(generate("-p", "hello", "--raw", "--json").out)["prompt_tokens"] > 0
    assert json.loads(generate("-p", "[1, 2,3]", "--ids", "--json").out)["prompt_tokens"] == 3


def test_the_engines_settings_are_flags(generate):
    whole = json.loads(generate("-p", "hello", "--json").out)["text"]
    stop = whole[3:5]
    ended = json.loads(generate("-p", "hello", "--json", "--stop", "never said", "--stop", stop).out)
    assert ended["text"] == whole[: whole.index(stop)] and ended["stop_reason"] == "stop"
    filled = json.loads(generate("-p", "hello", "--suffix", "end", "--json", family="llada").out)
    assert filled["new_tokens"] == 16
    assert "E-MEM" in generate("-p", "hello", "--memory-budget", "1KiB", "--json", code=4).out
    assert json.loads(generate("-p", "hello", "--json", "--memory-budget", "1GiB").out)["text"] == whole
    assert json.loads(generate("-p", "hello", "--json", "--min-new-tokens", "9").out)["new_tokens"] >= 9


@pytest.mark.skipif(sys.platform != "linux", reason="offered on Linux only")
def test_background_gives_the_same_text(generate):
    assert generate("-p", "hello", "--background").out == generate("-p", "hello").out


@pytest.mark.parametrize(("flag", "passes"), [("--no-cache", 16), ("--prefix-cache", 16), ("--dual-cache", 16)])
def test_cache_flags(generate, flag, passes):
    result = json.loads(generate("-p", "hello", flag, "--sampler", "static", "--json", family="llada").out)
    assert result["forward_passes"] == passes


@pytest.mark.parametrize(
    ("arguments", "error", "code"),
    [
        (["-p", "x", "--json", "--json-lines"], "E-USAGE", 2),
        (["--json"], "E-USAGE", 2),
        (["-p", "x", "--prompt-file", "y", "--json"], "E-USAGE", 2),
        (["-p", "x", "--ids", "--json"], "E-PROMPT", 2),
        (["-p", "1", "--ids", "--raw", "--json"], "E-USAGE", 2),
        (["-p", "x", "--dual-cache", "--json"], "E-PARAM", 2),
        (["-p", "x", "--no-cache", "--dual-cache", "--json"], "E-USAGE", 2),
        (["-p", "x", "--threshold", "nan", "--json"], "E-PARAM", 2),
        (["-p", "x", "--steps", "3", "--threshold", "0.5", "--json"], "E-PARAM", 2),
        (["-p", "x", "--sampler", "treshold", "--json"], "E-PARAM", 2),
        (["--prompt-file", "no/such/file", "--json"], "E-FILE", 3),
        (["-p", "x", "--device", "cuda", "--json"], "E-DEVICE", 5),
    ],
)
def test_problems_are_coded(generate, arguments, error, code):
    if error == "E-DEVICE":
        onnxruntime = pytest.importorskip("onnxruntime")
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime offers CUDA")
    assert json.loads(generate(*arguments, code=code).out)["error"]["code"] == error


def test_prompt_file_that_is_no_text(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DlmEdgeError) as error:
        read_prompt(None, str(path), False, False)
    assert error.value.code == "E-UTF8"


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_first_interrupt_keeps_the_text_and_the_second_quits(make_engine, capsys):
    model = GatedModel(free=12)
    engine = make_engine(model=model)
    before = signal.getsignal(signal.SIGINT)
    job = engine.submit("some words", raw=True, max_new_tokens=40)
    with stop_on_interrupt(job):
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        result = show(job, as_json=False, json_lines=False)
        assert result.stop_reason == "cancelled" and capsys.readouterr().out == result.text + "\n"
        assert result.new_tokens > 0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(5)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("form", [[], ["--json"], ["--json-lines"]])
def test_a_stopped_run_exits_with_130(bundles, monkeypatch, capsys, form):
    def stop_early(job, **how):
        job.cancel()
        return show(job, **how)

    monkeypatch.setattr("dlm_edge.cli.generate.show", stop_early)
    try:
        code = main(["generate", str(bundles["llada"][1]), "-p", "x", "--max-new-tokens", "500", "--no-cache", *form])
    except SystemExit as leaving:
        code = leaving.code
    lines = capsys.readouterr().out.splitlines()
    assert code == 130
    if form:
        last = json.loads(lines[-1])
        assert last.get("result", last)["stop_reason"] == "cancelled"
        assert len(lines) == 1 or form == ["--json-lines"]
