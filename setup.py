"""Build the ONNX Runtime operator library with a plain C++ compiler; everything else is in pyproject.toml.

DLM_EDGE_NATIVE=0  do not build it: a wheel for any platform, models run on standard operators
DLM_EDGE_NATIVE=1  it must build: a failure is an error
unset              try; without a working compiler, warn and go on without the library
CXX, CXXFLAGS      compiler (default: c++, g++, clang++, the first found) and further flags
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
NATIVE = os.environ.get("DLM_EDGE_NATIVE", "")
X86 = platform.machine().lower() in ("x86_64", "amd64")

FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-psabi"]
EXACT = "-ffp-contract=off"  # products and sums are rounded one by one, as NumPy does
# Each vector width is a file of its own; the library chooses at run time.
SOURCES: dict[str, list[str]] = {
    "library.cpp": [], "operator.cpp": [], "simd.cpp": [],
    "attention_inputs.cpp": [], "pattern_inputs.cpp": [], "row_inputs.cpp": [], "select_inputs.cpp": [],
    "attention_op.cpp": [], "attention.cpp": [], "sparse_plan.cpp": [], "sparse_merge.cpp": [],
    "select_pages_op.cpp": [], "select_pages.cpp": [],
    "dequantize_rows_op.cpp": [], "dequantize_rows.cpp": [],
    "pattern_attention_op.cpp": [], "pattern_plan.cpp": [],
    "quantize_rows_op.cpp": [], "quantize_rows.cpp": [], "score_rows.cpp": [],
    "attention_portable.cpp": [],
    "linear_op.cpp": [], "linear_plan.cpp": [], "linear_portable.cpp": [EXACT],
    "cuda_driver.cpp": [], "cuda_launch.cpp": [], "cuda_operators.cpp": [],
    "cuda_attention.cpp": [], "cuda_select_pages.cpp": [], "cuda_dequantize_rows.cpp": [], "cuda_pattern_attention.cpp": [],
}  # fmt: skip
if X86:
    SOURCES["attention_avx2.cpp"] = ["-mavx2", "-mfma", "-mf16c"]
    SOURCES["attention_avx512.cpp"] = [
        "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c",
        "-mprefer-vector-width=512",
    ]  # fmt: skip
    SOURCES["attention_avx512_vnni.cpp"] = [*SOURCES["attention_avx512.cpp"], "-mavx512vnni"]
    SOURCES["linear_avx2.cpp"] = [*SOURCES["attention_avx2.cpp"], EXACT]
    SOURCES["linear_avx_vnni.cpp"] = [*SOURCES["linear_avx2.cpp"], "-mavxvnni"]
    SOURCES["linear_avx512_vnni.cpp"] = [*SOURCES["attention_avx512_vnni.cpp"], EXACT]
    SOURCES["linear_amx.cpp"] = [*SOURCES["linear_avx512_vnni.cpp"], "-mamx-tile", "-mamx-int8"]
EXPORTS = ROOT / "kernels" / "csrc" / "exports.map"
# Nothing but the named symbols leaves the library, not even the C++ library that is linked into it.
LINK_FLAGS = ["-shared", "-static-libstdc++", "-static-libgcc", "-ldl", f"-Wl,--version-script={EXPORTS}", "-s"]
if sys.platform == "darwin":
    LINK_FLAGS = ["-shared"]


def compiler() -> list[str]:
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise FileNotFoundError("no C++ compiler found (looked for $CXX, c++, g++, clang++)")


def run(command: list[str]) -> None:
    print(shlex.join(command))
    subprocess.run(command, check=True)


class NativeBuild(build_ext):
    """Put the shared library next to dlm_edge/kernels/__init__.py, in the wheel or in the tree."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"  # no CPython tag: the library has no Python ABI

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # A library left from an earlier build must not be mistaken for the result of this one.
        target.unlink(missing_ok=True)
        try:
            self.compile(target)
        except (OSError, subprocess.CalledProcessError) as error:
            if NATIVE == "1":
                raise
            self.warn(f"dlm-edge: native operators not built ({error}); models will run on standard operators")

    def compile(self, target: Path) -> None:
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        cxx, extra = compiler(), shlex.split(os.environ.get("CXXFLAGS", ""))
        objects = {name: str(build / Path(name).with_suffix(".o").name) for name in SOURCES}
        commands = [
            [*cxx, *FLAGS, *SOURCES[name], *extra, "-c", str(ROOT / "kernels" / "csrc" / name), "-o", objects[name]]
            for name in SOURCES
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(run, commands))
        # Linked beside the target and renamed: a process that has the old library loaded keeps its own file.
        linked = target.with_suffix(".so.new")
        run([*cxx, *objects.values(), *LINK_FLAGS, "-o", str(linked)])
        linked.replace(target)


class PlatformWheel(bdist_wheel):
    """The library has no Python ABI: one wheel per platform serves every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, tag = super().get_tag()
        return "py3", "none", tag


LIBRARY = Extension("dlm_edge.kernels.libdlm_edge_ops", sources=[], optional=NATIVE != "1")

setup(
    ext_modules=[] if NATIVE == "0" else [LIBRARY],
    cmdclass={} if NATIVE == "0" else {"build_ext": NativeBuild, "bdist_wheel": PlatformWheel},
)
