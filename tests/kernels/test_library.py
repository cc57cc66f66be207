"""Finding, checking and registering the compiled library; the numbers are tested per operator."""

from __future__ import annotations

import subprocess
import sys

import onnxruntime as ort
import pytest

from dlm_edge import kernels
from dlm_edge.errors import EnvironmentProblem
from dlm_edge.kernels import library

needs_library = pytest.mark.skipif(kernels.library_path() is None, reason="the native library is not built")


@pytest.fixture(autouse=True)
def load_anew():
    library._load.cache_clear()


def test_importing_the_package_imports_neither_onnx_nor_onnxruntime():
    code = (
        "import sys, dlm_edge.kernels, dlm_edge.kernels.prefix_block_attention.reference;"
        "print(sorted({'onnx', 'onnxruntime', 'torch'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"


def test_without_a_library_register_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    assert kernels.library_path() is None
    assert kernels.register(ort.SessionOptions()) is False
    assert kernels.simd() is None


def test_a_library_that_cannot_be_loaded_is_an_error(monkeypatch, tmp_path):
    (tmp_path / library.FILE_NAME).write_bytes(b"not a library")
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    with pytest.raises(EnvironmentProblem, match="cannot be loaded") as raised:
        kernels.register(ort.SessionOptions())
    assert raised.value.code == "E-NATIVE"


@needs_library
def test_a_library_of_another_version_is_an_error(monkeypatch):
    monkeypatch.setattr(library, "OPERATOR_VERSION", 3)
    with pytest.raises(EnvironmentProblem, match="operator version 2, this package needs 3"):
        kernels.register(ort.SessionOptions())


@needs_library
def test_an_unknown_simd_variant_is_refused():
    before = kernels.simd()
    assert kernels.set_simd("sse9") is False
    assert kernels.simd() == before
