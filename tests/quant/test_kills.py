"""A job with folding, tuning and an imatrix, killed by the system or by its own file calls, comes to the same bytes."""

import os

import pytest

from benchmarks.kill_loop import kill_loop
from dlm_edge import files
from dlm_edge.errors import DlmEdgeError
from dlm_edge.journal import JOURNAL
from dlm_edge.quant import quantize
from tests.core.faulty_files import FaultyCalls, Killed
from tests.quant.stopped_jobs import hashes
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


@pytest.fixture(scope="module")
def expected(source, settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("clean") / "out"
    quantize(source, out, **settings)
    return hashes(out)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_killed_for_real_at_random_moments(source, settings, tmp_path):
    summary = kill_loop(source, tmp_path, settings, kills=KILLS, seed=0)
    assert summary.kills == KILLS and summary.outputs >= 1
    assert summary.differing == []


# Killed: at every file opened, renamed and removed. Failing: at some of all calls, writes and syncs among them.
@pytest.mark.parametrize(
    ("kill", "only", "n_calls", "stride"), [(True, {"open", "replace", "unlink"}, 40, 3), (False, None, 150, 16)]
)
def test_whichever_file_call_fails_the_result_is_the_same(
    source, settings, expected, tmp_path, monkeypatch, kill, only, n_calls, stride
):
    for k in range(1, 1000, stride):
        out = tmp_path / str(k) / "out"
        monkeypatch.setattr(files, "calls", FaultyCalls(k, kill=kill, only=only))
        try:
            quantize(source, out, **settings)
        except Killed:
            faulty = True
        except DlmEdgeError as problem:
            assert problem.code == "E-IO"
            faulty = True
        else:
            faulty = False
        monkeypatch.setattr(files, "calls", FaultyCalls())
        if out.exists():
            assert {n: h for n, h in hashes(out).items() if n != JOURNAL} == expected
        if not faulty:
            break
        try:
            quantize(source, out, resume=True, **settings)
        except DlmEdgeError as problem:
            assert problem.code == "E-EXISTS" and out.exists()
        assert hashes(out) == expected
        assert os.listdir(out.parent) == ["out"]
    assert k > n_calls  # the loop went through the calls of all layers and of the closing files
