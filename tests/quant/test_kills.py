"""A job with folding, tuning and an imatrix, killed by the system or by its own file calls, comes to the same bytes."""

import os

import pytest

from benchmarks.kill_loop import kill_loop
from tests.quant.stopped_jobs import Faults, fail_at_calls, faults_to_try
from tests.tiny import make_checkpoint

SETTINGS = {"method": "awq+gptq", "bits": 3, "group_size": 16, "tune": 1, "imatrix": True, "calib_tokens": 256}
KILLS = 5  # benchmarks/kill_loop.py does as many as it is asked for


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Every query head has its own v head, so that all producers are folded."""
    folder = tmp_path_factory.mktemp("kills") / "source"
    return make_checkpoint(folder, "llada", n_layers=2, hidden_size=32, head_dim=8, intermediate_size=48)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "calibration.txt"
    path.write_text("one two three, four five six: seven")
    return SETTINGS | {"calib_data": path}


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_killed_for_real_at_random_moments(source, settings, tmp_path):
    summary = kill_loop(source, tmp_path, settings, kills=KILLS, seed=0)
    assert summary.kills == KILLS and summary.outputs >= 1
    assert summary.differing == []


# Killed: at every file opened, renamed and removed. Failing: at some of all calls, writes and syncs among them.
SOME = [(Faults(kill=True, only=("open", "replace", "unlink"), stride=3), 40), (Faults(stride=16), 150)]


@pytest.mark.parametrize("faults", faults_to_try(*(faults for faults, _ in SOME)), ids=str)
def test_whichever_file_call_fails_the_result_is_the_same(source, settings, tmp_path, monkeypatch, faults):
    # the loop went through the calls of all layers and of the closing files
    assert fail_at_calls(monkeypatch, source, tmp_path, settings, faults) > dict(SOME).get(faults, 150)
