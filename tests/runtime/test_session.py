"""Devices, threads, and the check of what provides onnxruntime."""

import importlib.metadata

import pytest

from dlm_edge.errors import DlmEdgeError, EnvironmentProblem
from dlm_edge.runtime import Engine
from dlm_edge.runtime.onnxruntime_guard import check_distributions, installed_distributions
from dlm_edge.runtime.session import check_threads, choose_device, load_errors, run_errors
from dlm_edge.runtime.step_model import Terminated

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class Distribution:
    def __init__(self, name):
        self.metadata = {"Name": name}


def test_no_distribution_gives_the_install_line():
    with pytest.raises(EnvironmentProblem) as error:
        check_distributions([])
    assert error.value.code == "E-ORT" and "pip install 'dlm-edge[cpu]'" in error.value.hint


def test_two_distributions_give_the_repair_line():
    with pytest.raises(EnvironmentProblem) as error:
        check_distributions(["onnxruntime", "onnxruntime-gpu"])
    assert error.value.hint == (
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install --force-reinstall --no-deps onnxruntime-gpu"
    )


def test_only_owners_of_the_module_count():
    names = [
        "onnxruntime_gpu",
        "onnxruntime-extensions",
        "onnxruntime-genai-cuda",
        "numpy",
        None,
        "onnxruntime-directml",
    ]
    assert installed_distributions(lambda: map(Distribution, names)) == ["onnxruntime-directml", "onnxruntime-gpu"]


def test_this_environment_passes():
    check_distributions(installed_distributions(importlib.metadata.distributions))


@pytest.mark.parametrize(
    ("device", "target", "available", "expected"),
    [
        ("auto", "cpu", [CPU], "cpu"),
        ("auto", "cpu", [CUDA, CPU], "cpu"),
        ("auto", "cuda", [CUDA, CPU], "cuda"),
        ("cuda", "cpu", [CUDA, CPU], "cuda"),
        ("cpu", "cuda", [CUDA, CPU], "cpu"),
        ("cuda", "cpu", [CPU], "E-DEVICE"),
        ("auto", "cuda", [CPU], "E-DEVICE"),
        ("tpu", "cpu", [CPU], "E-USAGE"),
    ],
)
def test_device_is_the_one_asked_for_or_an_error(device, target, available, expected):
    if not expected.startswith("E-"):
        assert choose_device(device, target, available) == expected
        return
    with pytest.raises(DlmEdgeError) as error:
        choose_device(device, target, available)
    assert error.value.code == expected


@pytest.mark.parametrize("threads", [0, -1, 5000])
def test_threads_out_of_range(threads):
    with pytest.raises(DlmEdgeError) as error:
        check_threads(threads)
    assert error.value.code == "E-PARAM"


def test_nothing_is_printed_or_retried(bundles, tmp_path, capfd):
    """ONNX Runtime's own constructor prints and retries after some failures."""
    import shutil

    folder = shutil.copytree(bundles["sdar"][1], tmp_path / "b")
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(bytes(len(data)))
    with pytest.raises(DlmEdgeError):
        Engine.open(folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (MemoryError("x"), "E-MEM"),
        (RuntimeError("std::bad_alloc"), "E-MEM"),
        (RuntimeError("Could not find an implementation for Foo(1)"), "E-OP"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "E-ONNX"),
        (ValueError(""), "E-ONNX"),
    ],
)
def test_load_errors_are_coded(tmp_path, raised, code):
    with pytest.raises(DlmEdgeError) as error, load_errors(tmp_path / "model.onnx"):
        raise raised
    assert error.value.code == code and "model.onnx" in error.value.message


@pytest.mark.parametrize(
    ("text", "code"), [("out of memory", "E-MEM"), ("CUDA failure 700", "E-DEVICE"), ("bad shape\nat node 3", "E-ORT")]
)
def test_run_errors_are_coded(text, code):
    with pytest.raises(DlmEdgeError) as error, run_errors():
        raise RuntimeError(text)
    assert error.value.code == code and "\n" not in error.value.message


def test_a_requested_end_is_no_error():
    with pytest.raises(Terminated), run_errors():
        raise RuntimeError("Exiting due to terminate flag being set to true.")
