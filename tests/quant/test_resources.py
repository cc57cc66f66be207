"""The estimates of memory and time, against real jobs in processes of their own and against each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.big_checkpoint import make_spec, write_checkpoint
from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.quant import memory_estimate, time_estimate
from dlm_edge.quant.pipeline import make_options
from dlm_edge.quant.plan import make_plan
from dlm_edge.quant.statistics import output_error, output_errors

SETTINGS = ("--method", "gptq", "--calib-tokens", "1024")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    write_checkpoint(folder, make_spec(512, 2, 4096))
    return folder


def report_of(source: Path, out: Path, *more: str) -> dict:
    command = [sys.executable, "-m", "dlm_edge", "quantize", str(source), "-o", str(out), *SETTINGS, "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def plan_of(source: Path, **settings):
    options = make_options(**settings)
    return make_plan(open_checkpoint(source), options), options


def test_the_estimate_of_memory_is_what_a_job_takes(source, tmp_path):
    planned = report_of(source, tmp_path / "out", "--dry-run")["peak_rss_bytes"]
    measured = report_of(source, tmp_path / "out")["peak_rss_bytes"]
    assert 0.85 * measured <= planned <= 1.10 * measured


@pytest.mark.parametrize("settings", [{"method": "gptq"}, {"recipe": "w4"}, {"recipe": "w2"}, {"method": "rtn"}])
def test_memory_does_not_depend_on_the_number_of_layers(tmp_path, settings):
    estimates = []
    for blocks in (1, 4):
        folder = tmp_path / str(blocks)
        write_checkpoint(folder, make_spec(128, blocks, 4096))
        plan, options = plan_of(folder, **settings)
        estimates.append(memory_estimate.estimate_ram(plan, options))
    assert estimates[0] == estimates[1]


def test_more_work_is_estimated_to_take_more_time_and_memory(source, monkeypatch):
    monkeypatch.setattr(time_estimate, "product_speed", lambda: 1e11)
    monkeypatch.setattr(time_estimate, "search_speed", lambda: 5e8)
    few, many = ({"calib_tokens": n} for n in (2048, 32768))
    jobs = [
        {"method": "rtn"},
        {"method": "rtn", "rotate": True},
        {"method": "gptq", **few},
        {"recipe": "w4", **few},
        {"recipe": "w4", **many},
    ]
    seconds = [time_estimate.estimate_seconds(*plan_of(source, **job)) for job in jobs]
    memory = [memory_estimate.estimate_ram(*plan_of(source, **job)) for job in jobs]
    assert seconds == sorted(set(seconds))
    assert memory == sorted(memory) and memory[4] > memory[3]


def test_the_speeds_are_those_of_this_machine():
    assert 1e8 < time_estimate.product_speed(256) < 1e14
    assert 1e5 < time_estimate.search_speed() < 1e12


def test_errors_of_several_results_are_those_of_each():
    import torch

    x, weight = torch.randn(2000, 700).double(), torch.randn(600, 700)  # more than one block of rows and columns
    hessian = x.T @ x
    others = [weight + 0.1 * torch.randn_like(weight) for _ in range(2)]
    expected = [
        float(((o - weight).double() @ x.T).square().sum() / (weight.double() @ x.T).square().sum()) for o in others
    ]
    assert output_errors(hessian, weight, others) == pytest.approx(expected, rel=1e-9)
    assert output_error(hessian, weight, others[1]) == pytest.approx(expected[1], rel=1e-9)
