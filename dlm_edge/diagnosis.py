"""`diagnose`: is this installation able to do its job, and if not, which line repairs it."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from importlib import metadata
from typing import Any

import msgspec

from dlm_edge import __version__, kernels
from dlm_edge.errors import DlmEdgeError
from dlm_edge.runtime.onnxruntime_guard import check_distributions, installed_distributions, load_onnxruntime

OPTIONAL = {"torch": "quant", "onnx": "export", "click": "cli", "rich": "cli"}


class Diagnosis(msgspec.Struct, kw_only=True):
    """Keys of `dlm-edge doctor --json`. A finding of level `error` makes `ok` false; `note` does not."""

    ok: bool = True
    version: str = __version__
    python: str = platform.python_version()
    platform: str = platform.platform()
    onnxruntime: dict[str, Any] = {}
    native_operators: dict[str, Any] = {}
    gpu: str | None = None
    packages: dict[str, str | None] = {}
    findings: list[dict[str, str]] = []

    def find(self, level: str, message: str, hint: str) -> None:
        self.findings.append({"level": level, "message": message, "hint": hint})
        self.ok = self.ok and level != "error"


def diagnose() -> Diagnosis:
    found = Diagnosis(onnxruntime={}, native_operators={}, packages={}, findings=[])
    look_at_onnxruntime(found)
    look_at_operators(found)
    for name, extra in OPTIONAL.items():
        found.packages[name] = metadata.version(name) if importlib.util.find_spec(name) else None
        if found.packages[name] is None:
            found.find("note", f"{name} is not installed", f"pip install 'dlm-edge[{extra}]' where it is needed")
    return found


def look_at_onnxruntime(found: Diagnosis) -> None:
    names = installed_distributions()
    try:
        check_distributions(names)
        ort = load_onnxruntime()
    except DlmEdgeError as error:
        found.onnxruntime = {"distribution": ", ".join(names) or None, "version": None, "providers": []}
        found.find("error", error.message, error.hint)
        return
    providers = ort.get_available_providers()
    found.onnxruntime = {"distribution": names[0], "version": ort.__version__, "providers": providers}
    gpu = shutil.which("nvidia-smi")
    found.gpu = gpu and "NVIDIA driver found"
    if gpu and "CUDAExecutionProvider" not in providers:
        found.find("note", "there is a GPU, and this onnxruntime cannot use it", "pip install 'dlm-edge[cuda]'")


def look_at_operators(found: Diagnosis) -> None:
    """The library is there, loads, and is of this version."""
    path = kernels.library_path()
    if path is None:
        found.native_operators = {"library": None, "simd": None}
        hint = "reinstall where a C++ compiler is found; until then models run on their function body, slower"
        found.find("note", "the native operator library was not built", hint)
        return
    try:
        found.native_operators = {"library": path.name, "simd": kernels.simd()}
    except DlmEdgeError as error:
        found.native_operators = {"library": path.name, "simd": None}
        found.find("error", error.message, error.hint)
