"""QLinear's kernels for AMX and AVX-VNNI with these instructions emulated: their layouts, shapes and order of work on a
processor that lacks them. Where it has them, tests/kernels/test_qlinear.py runs the real ones."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dlm_edge import kernels
from tests.kernels.linear_cases import CASES, Case, defined, make_rows, make_weight

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "kernels" / "csrc"
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"]
EMULATED = ["-include", str(HERE / "emulated" / "instructions.h")]
FLAGS = {
    SOURCES / "linear_amx.cpp": [*AVX512, *EMULATED],
    SOURCES / "linear_avx_vnni.cpp": [*AVX2, *EMULATED],
    SOURCES / "linear_plan.cpp": [],
    HERE / "emulated" / "run_linear.cpp": [],
}


@pytest.fixture(scope="module")
def run_linear(tmp_path_factory):
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("needs a C++ compiler for x86-64")
    folder = tmp_path_factory.mktemp("emulated")
    common = [compiler, "-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-Wno-psabi"]

    def compiled(source: Path) -> str:
        made = str(folder / f"{source.stem}.o")
        subprocess.run([*common, *FLAGS[source], "-c", str(source), "-o", made], check=True)
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, FLAGS))
    subprocess.run([*common, "-shared", *objects, "-o", str(folder / "linear.so")], check=True)
    return ctypes.CDLL(str(folder / "linear.so")).run_linear


def supports(kernel: str) -> bool:
    """Whether the instructions around the emulated ones are there."""
    needed = "avx512_vnni" if kernel == "amx" else "avx2"
    found = kernels.set_simd(needed)
    kernels.set_simd(None)
    return found


@pytest.mark.parametrize("kernel", ["amx", "avx_vnni"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_emulated_kernel_is_the_definition_to_the_bit(case: Case, kernel: str, run_linear):
    if not supports(kernel):
        pytest.skip(f"this processor lacks what {kernel} needs beside the emulated instructions")
    weight = make_weight(case)
    parts = [weight.codes, weight.scales.astype(np.float32), weight.zeros, weight.float_zeros, weight.bias]
    parts += [weight.outlier_columns, weight.outlier_weights]
    for count in (1, 3, 17, 33, 70):
        x = make_rows(case, count)
        sizes = np.array([count, *case.sizes.values(), case.outliers])
        y = np.full((count, case.out_features), np.nan, np.float32)
        pointers = [p.ctypes.data_as(ctypes.c_void_p) if p.size else None for p in (sizes, x, *parts, y)]
        run_linear(kernel.encode(), *pointers)
        np.testing.assert_array_equal(y, defined(case, weight, x))
