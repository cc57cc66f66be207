"""The GPU benchmarks' own checks, interpreted on a small shape; what they say without a GPU; and, with one, the real run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NO_DEVICE = 5
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton: pip install triton")


def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(BENCHMARKS / name), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@needs_triton
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")
@pytest.mark.parametrize(("bits", "step"), [(16, "losa"), (8, "mage"), (4, "mage first")])
def test_the_workloads_steps_are_right(bits, step):
    from benchmarks.gpu.correctness import TOLERANCE, step_error
    from benchmarks.gpu.workload import Shape, Workload

    assert step_error(Workload(Shape("small", 2, 1, 64, 3, 70), bits, "cpu"), step) <= TOLERANCE


@needs_triton
@pytest.mark.parametrize("by_latents", [True, False])
def test_the_rows_that_are_timed_are_right(by_latents):
    from benchmarks.gpu.correctness import check_rows
    from benchmarks.gpu.row_steps import RowShape

    rows = check_rows("cpu", [RowShape("small", 48, 32, by_latents, 150, 9)])
    assert len(rows) == 8 and all(row["ok"] for row in rows)


@needs_triton
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")
def test_the_sequences_that_are_timed_are_right():
    from benchmarks.gpu.correctness import check_sequences
    from benchmarks.gpu.pattern_steps import SequenceShape

    rows = check_sequences("cpu", [SequenceShape("small", 2, 1, 32, 50, 16)])
    assert [row["step"] for row in rows] == ["whole dense", "whole measured", "whole sparsed"]
    assert all(row["ok"] for row in rows)


@needs_triton
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")
def test_a_wrong_row_or_pattern_would_be_noticed():
    from benchmarks.gpu.correctness import ROW_TOLERANCE, TOLERANCE
    from benchmarks.gpu.pattern_steps import PatternWork, SequenceShape
    from benchmarks.gpu.row_steps import RowShape, RowWork

    rows = RowWork(RowShape("small", 48, 32, True, 150, 9), 4, "cpu")
    made = rows.step
    rows.step = lambda name: [each * 1.01 for each in made(name)]
    assert rows.error("rows fused") > ROW_TOLERANCE
    whole = PatternWork(SequenceShape("small", 2, 1, 32, 50, 16), "cpu")
    attended = whole.step
    whole.step = lambda name: attended(name) * 1.01
    assert whole.error("whole dense") > TOLERANCE


@needs_triton
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")
def test_a_wrong_kernel_would_be_noticed():
    from benchmarks.gpu.correctness import TOLERANCE, step_error
    from benchmarks.gpu.workload import Shape, Workload

    work = Workload(Shape("small", 2, 1, 64, 3, 70), 16, "cpu")
    right = work.step
    work.step = lambda *arguments: right(*arguments) * 1.01
    assert step_error(work, "dense") > TOLERANCE


def test_speed_ups_count_the_first_step():
    from benchmarks.gpu_attention import with_ratios

    seconds = {
        "plain dense": 8.0,
        "dense": 10.0,
        "losa": 2.0,
        "quest": 4.0,
        "mage first": 12.0,
        "mage": 1.0,
        "sdpa": 9.0,
    }
    rows = [{"step": step, "bits": 16, "seconds": value} for step, value in seconds.items()]
    losa = next(row for row in with_ratios(rows) if row["step"] == "losa")
    assert losa["speed_up"] == 4.0
    assert losa["block_of_4"] == 4 * 8.0 / (10.0 + 3 * 2.0)


@pytest.mark.parametrize("script", ["gpu_attention.py", "gpu_end_to_end.py"])
def test_without_a_gpu_it_says_so(script):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run_script(script)
    assert done.returncode == NO_DEVICE
    assert "no CUDA device" in done.stderr or "not installed" in done.stderr


@pytest.mark.gpu
@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_are_right_on_this_gpu():
    done = run_script("gpu_attention.py", "--check-only")
    assert done.returncode == 0, done.stderr
