"""Stopped, failed or killed at any point, a job continues to the bytes of an uninterrupted one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dlm_edge.quant.job as job_module
from dlm_edge.errors import DlmEdgeError, Stopped
from dlm_edge.journal import JOURNAL
from dlm_edge.quant import quantize
from dlm_edge.work_folder import WorkFolder
from tests.quant.stopped_jobs import Faults, fail_at_calls, faults_to_try, hashes, stop_after
from tests.tiny import make_checkpoint

SETTINGS = {"bits": 3, "group_size": 16}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_checkpoint(
        tmp_path_factory.mktemp("resume") / "source", "sdar", n_layers=3, hidden_size=32, intermediate_size=48
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "calibration.txt"
    path.write_text("one two three, four five six: seven")
    return path


@pytest.fixture(scope="module")
def expected(source, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("clean") / "out"
    quantize(source, out, calib_data=text, **SETTINGS)
    return hashes(out)


# Every call for rounding; for GPTQ, where resuming recomputes activations, every file and journal line.
@pytest.mark.parametrize(
    ("method", "faults", "n_calls"),
    [("rtn", f, 80) for f in faults_to_try(Faults(stride=6), Faults(kill=True, stride=2))]
    + [("gptq", f, 24) for f in faults_to_try(Faults(kill=True, only=("open", "replace"), stride=4))],
    ids=str,
)
def test_whichever_file_call_fails_the_result_is_the_same(text, tmp_path, monkeypatch, method, faults, n_calls):
    layers = 1 if method == "rtn" else 2
    small = make_checkpoint(tmp_path / "source", "sdar", n_layers=layers, hidden_size=32, intermediate_size=48)
    settings = {**SETTINGS, "method": method} | ({"calib_data": text} if method == "gptq" else {})
    # the loop went through the calls of all layers and of the closing files
    assert fail_at_calls(monkeypatch, small, tmp_path / "jobs", settings, faults) > n_calls


def test_a_resumed_job_does_not_repeat_finished_layers(source, text, expected, tmp_path, monkeypatch):
    stop_after(monkeypatch, layers=2)
    with pytest.raises(Stopped) as caught:
        quantize(source, tmp_path / "out", calib_data=text, **SETTINGS)
    assert caught.value.exit_code == 130 and "--resume" in caught.value.hint
    assert "2 of 3 layers finished" in caught.value.message
    monkeypatch.undo()
    done: list[int] = []
    quantize_layer = job_module.Job.quantize_layer
    monkeypatch.setattr(job_module.Job, "quantize_layer", lambda self, i: (done.append(i), quantize_layer(self, i)))
    report = quantize(source, tmp_path / "out", calib_data=text, resume=True, **SETTINGS)
    assert done == [2]
    assert len(report.layers) == 1 + 21 and hashes(tmp_path / "out") == expected


def test_a_damaged_layer_is_done_again(source, text, expected, tmp_path, monkeypatch):
    stop_after(monkeypatch, layers=2)
    with pytest.raises(Stopped):
        quantize(source, tmp_path / "out", calib_data=text, **SETTINGS)
    monkeypatch.undo()
    layer = tmp_path / "out.partial" / "layer-0000.safetensors"
    data = bytearray(layer.read_bytes())
    data[-3] ^= 1
    layer.write_bytes(data)
    quantize(source, tmp_path / "out", calib_data=text, resume=True, **SETTINGS)
    assert hashes(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"bits": 4}, "bits: 3 then, 4 now"), ({"seed": 1}, "seed"), ({"skip": ["*.0.*"]}, "skip")],
)
def test_other_options_are_not_a_resumption(source, text, tmp_path, monkeypatch, changed, named):
    stop_after(monkeypatch, layers=1)
    with pytest.raises(Stopped):
        quantize(source, tmp_path / "out", calib_data=text, **SETTINGS)
    monkeypatch.undo()
    with pytest.raises(DlmEdgeError, match=named) as caught:
        quantize(source, tmp_path / "out", calib_data=text, resume=True, **(SETTINGS | changed))
    assert caught.value.code == "E-RESUME"
    with pytest.raises(DlmEdgeError) as caught:
        quantize(source, tmp_path / "out", calib_data=text, **SETTINGS)
    assert caught.value.code == "E-RESUME"


def test_neither_are_other_data_or_another_model(source, text, tmp_path, monkeypatch):
    stop_after(monkeypatch, layers=1)
    with pytest.raises(Stopped):
        quantize(source, tmp_path / "out", calib_data=text, **SETTINGS)
    monkeypatch.undo()
    other_text = tmp_path / "calibration.txt"
    other_text.write_text("something else altogether, and longer")
    other = make_checkpoint(tmp_path / "other", "sdar", n_layers=3, hidden_size=32, intermediate_size=48, seed=1)
    for model, data, named in ((source, other_text, "calibration_data"), (other, text, "weights")):
        with pytest.raises(DlmEdgeError, match=named) as caught:
            quantize(model, tmp_path / "out", calib_data=data, resume=True, **SETTINGS)
        assert caught.value.code == "E-RESUME"


def test_an_existing_output_is_kept_unless_restart_is_given(source, text, expected, tmp_path):
    quantize(source, tmp_path / "out", calib_data=text, **SETTINGS)
    with pytest.raises(DlmEdgeError) as caught:
        quantize(source, tmp_path / "out", calib_data=text, bits=2, group_size=16)
    assert caught.value.code == "E-EXISTS" and hashes(tmp_path / "out") == expected
    quantize(source, tmp_path / "out", calib_data=text, bits=2, group_size=16, restart=True)
    assert hashes(tmp_path / "out") != expected


def test_two_runs_on_one_output_exclude_each_other(source, text, tmp_path):
    with WorkFolder.open(tmp_path / "out", {}, resume=False, restart=False):
        with pytest.raises(DlmEdgeError) as caught:
            quantize(source, tmp_path / "out", calib_data=text, **SETTINGS)
    assert caught.value.code == "E-BUSY" and f"(process {os.getpid()})" in caught.value.message


def command(source, out, text, *more: str) -> list[str]:
    words = [sys.executable, "-m", "dlm_edge", "quantize", str(source), "-o", str(out), "--calib-data", str(text)]
    return [*words, "--bits", "3", "--group-size", "16", *more]


def environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    return os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def by_command(source, text, tmp_path_factory):
    """Hashes of a run in a process of its own, with one thread, and the seconds from its first file to its end."""
    out = tmp_path_factory.mktemp("process") / "out"
    process = subprocess.Popen(command(source, out, text), env=environment(), stderr=subprocess.DEVNULL)
    wait_for(out.with_name("out.partial"), process)
    started = time.monotonic()
    assert process.wait(60) == 0
    return hashes(out), time.monotonic() - started


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.001)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("number", range(2))
def test_killed_for_real_at_a_random_moment(source, text, by_command, tmp_path, number):
    expected, seconds = by_command
    out = tmp_path / "out"
    process = subprocess.Popen(command(source, out, text), env=environment(), stderr=subprocess.DEVNULL)
    wait_for(out.with_name("out.partial"), process)
    time.sleep(random.Random(number).random() * seconds)
    process.kill()
    process.wait(60)
    if not out.exists():
        again = subprocess.run(command(source, out, text, "--resume"), env=environment(), capture_output=True)
        assert again.returncode == 0, again.stderr
    assert {n: h for n, h in hashes(out).items() if n != JOURNAL} == expected


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_termination_signal_leaves_a_folder_to_resume_and_exits_with_130(source, text, by_command, tmp_path):
    expected, _ = by_command
    out = tmp_path / "out"
    process = subprocess.Popen(command(source, out, text), env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for(out.with_name("out.partial") / "outer.safetensors", process)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the job was faster than the signal")
    assert process.returncode == 130 and "E-STOPPED" in message and "--resume" in message
    again = subprocess.run(command(source, out, text, "--resume"), env=environment(), capture_output=True)
    assert again.returncode == 0 and hashes(out) == expected
