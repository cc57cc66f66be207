"""`diagnose`: is this installation able to do its job, and if not, which line repairs it."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dlm_edge import __version__, kernels
from dlm_edge.errors import DlmEdgeError
from dlm_edge.one_node_model import one_node_model
from dlm_edge.requirements import Requirement, requirements
from dlm_edge.runtime.onnxruntime_guard import check_distributions, installed_distributions, load_onnxruntime
from dlm_edge.verbs import EXTRAS, VERBS

ORT_EXTRAS = ("cpu", "cuda")
SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
SMI_TIMEOUT_S = 2.0
CHECKOUT = Path(__file__).resolve().parent.parent


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    level: str  # error: broken; note: works, but less than it could
    code: str  # of dlm_edge.errors.CODES
    message: str
    hint: str  # the line that repairs it


class Diagnosis(msgspec.Struct, kw_only=True):
    """Keys of `dlm-edge doctor --json`. A finding of level `error` makes `ok` false; `note` does not."""

    ok: bool = True
    version: str = __version__
    python: str = platform.python_version()
    platform: str = platform.platform()
    onnxruntime: dict[str, Any] = {}
    native_operators: dict[str, Any] = {}  # {library, simd, largest_error: {operator: difference from its definition}}
    gpu: str | None = None
    packages: dict[str, str | None] = {}
    verbs: dict[str, list[str]] = {}  # packages that a verb lacks; none: it is ready
    findings: list[Finding] = []

    def find(self, level: str, code: str, message: str, hint: str) -> None:
        """A hint that begins with pip names the interpreter that runs now: another pip would repair another place."""
        python = f"{shlex.quote(sys.executable)} -m pip "
        self.findings.append(Finding(level=level, code=code, message=message, hint=hint.replace("pip ", python)))
        self.ok = self.ok and level != "error"


def diagnose() -> Diagnosis:
    found = Diagnosis(onnxruntime={}, native_operators={}, packages={}, verbs={}, findings=[])
    ort = look_at_onnxruntime(found)
    look_at_operators(found, ort)
    look_at_gpu(found, ort)
    look_at_packages(found)
    look_at_cache(found)
    return found


def version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def install(extra: str) -> str:
    """The line that adds an extra to this installation, which may be a checkout used in place."""
    if (CHECKOUT / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{CHECKOUT}[{extra}]')}"
    return f"pip install 'dlm-edge[{extra}]'"


def look_at_onnxruntime(found: Diagnosis) -> Any:
    """The module, or None where it cannot be used."""
    names = installed_distributions()
    versions = {name: version_of(name) for name in names}
    found.onnxruntime = {"distribution": ", ".join(names) or None, "version": None, "providers": []}
    again = "pip install --force-reinstall --no-deps " + " ".join(f"{name}=={versions[name]}" for name in names)
    try:
        check_distributions(names)
    except DlmEdgeError as error:
        found.find("error", error.code, error.message, error.hint if names else install("cpu"))
        return None
    try:
        ort = load_onnxruntime()
        providers = list(ort.get_available_providers())
    except (DlmEdgeError, AttributeError) as error:
        message = error.message if isinstance(error, DlmEdgeError) else f"onnxruntime is not whole: {error}"
        found.find("error", "E-ORT", message, again)
        return None
    found.onnxruntime |= {"version": ort.__version__, "providers": providers}
    (name,) = names
    wanted = [r for r in requirements() if r.extra in ORT_EXTRAS and r.name == name]
    if versions[name] != ort.__version__:
        message = f"{name} {versions[name]} is installed, and its files are of {ort.__version__}"
        found.find("error", "E-ORT", message, again)
    elif any(not r.accepts(ort.__version__) for r in wanted):
        line = f"pip install '{name}{wanted[0].versions}'"
        found.find("error", "E-ORT", f"{name} {ort.__version__} is not {wanted[0].versions}", line)
    lacking = [
        p
        for p in ("CPU", *(("CUDA",) if name == "onnxruntime-gpu" else ()))
        if f"{p}ExecutionProvider" not in providers
    ]
    if lacking:
        message = f"{name} lacks its {' and '.join(lacking)} provider: files of another distribution lie over it"
        found.find("error", "E-ORT", message, again)
    return ort


def look_at_operators(found: Diagnosis, ort: Any) -> None:
    """The library is there, loads, is of this version, and computes what the definitions say."""
    path = kernels.library_path()
    found.native_operators = {"library": path and path.name, "simd": None, "largest_error": {}}
    where = f"-e {shlex.quote(str(CHECKOUT))}"
    source = where if (CHECKOUT / "pyproject.toml").is_file() else "--force-reinstall --no-binary dlm-edge dlm-edge"
    build = f"DLM_EDGE_NATIVE=1 pip install --no-deps {source}"
    if path is None:
        message = "the native operator library was not built: models run on standard operators, slower"
        found.find("note", "E-NATIVE", message, f"with a C++ compiler: {build}")
        return
    try:
        found.native_operators["simd"] = kernels.simd()
    except DlmEdgeError as error:
        found.find("error", error.code, error.message, build)
        return
    if ort is None:
        return
    from dlm_edge.operator_check import TOLERANCE, differences

    try:
        errors = differences(ort)
    except Exception as error:  # whatever ONNX Runtime makes of a library that does not fit it
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        found.find("error", "E-NATIVE", f"ONNX Runtime cannot use the native operators: {text}", build)
        return
    found.native_operators["largest_error"] = errors
    for name, difference in errors.items():
        if not difference <= TOLERANCE:
            message = f"the native {name} is off by {difference:.1e} from its definition"
            found.find("error", "E-NATIVE", message, build)


def look_at_gpu(found: Diagnosis, ort: Any) -> None:
    """Whether there is one, this onnxruntime was built for it, and its libraries can be loaded."""
    if shutil.which(SMI[0]) is None:
        return
    try:
        done = subprocess.run(SMI, capture_output=True, text=True, timeout=SMI_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        found.find("note", "E-DEVICE", f"nvidia-smi failed: {error}", "reinstall or restart the NVIDIA driver")
        return
    if done.returncode:
        text = (done.stdout + done.stderr).strip().splitlines()
        message = f"nvidia-smi failed: {text[0] if text else done.returncode}"
        found.find("note", "E-DEVICE", message, "reinstall or restart the NVIDIA driver")
        return
    found.gpu = "; ".join(done.stdout.strip().splitlines())
    if ort is None:
        return
    if "CUDAExecutionProvider" not in found.onnxruntime["providers"]:
        change = f"pip uninstall -y {found.onnxruntime['distribution']} && {install('cuda')}"
        found.find("note", "E-DEVICE", "there is a GPU, and this onnxruntime cannot use it", change)
        return
    kind = {name: np.dtype(np.float32) for name in ("a", "b")}
    model = one_node_model(("Add", "", 24), kind, {"c": np.dtype(np.float32)})
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        session = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
        reason = "" if session.get_providers()[0] == providers[0] else "its libraries were not found"
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if reason:
        message = f"the CUDA provider cannot be loaded: {reason}"
        found.find(
            "error",
            "E-DEVICE",
            message,
            f"pip install --force-reinstall {install('cuda').removeprefix('pip install ')}",
        )


def look_at_packages(found: Diagnosis) -> None:
    """Versions of everything asked for, and which verbs lack what."""
    extras = {extra for needed in EXTRAS.values() for extra in needed} | {"cli"}
    missing: dict[str | None, list[Requirement]] = {}
    for each in requirements():
        if each.extra is not None and each.extra not in extras:
            continue
        version = found.packages[each.name] = version_of(each.name)
        if version is None:
            missing.setdefault(each.extra, []).append(each)
        elif not each.accepts(version):
            message = f"{each.name} {version} is not {each.versions}"
            found.find("error", "E-DEPENDENCY", message, f"pip install '{each.name}{each.versions}'")
    for each in missing.get(None, []):
        found.find(
            "error", "E-DEPENDENCY", f"{each.name} is not installed", f"pip install '{each.name}{each.versions}'"
        )
    for verb in VERBS:
        needed = EXTRAS.get(verb, ())
        found.verbs[verb] = sorted({each.name for extra in ("cli", *needed) for each in missing.get(extra, [])})
    for extra, lacking in missing.items():
        if extra is not None:
            verbs = [verb for verb, needed in EXTRAS.items() if extra in needed and verb in VERBS] or [
                "the command line"
            ]
            names = " and ".join(each.name for each in lacking)
            found.find("note", "E-DEPENDENCY", f"{', '.join(verbs)}: {names} not installed", install(extra))


def look_at_cache(found: Diagnosis) -> None:
    """Checkpoints given to `generate` are exported there."""
    from dlm_edge.artifacts import cache_folder

    wanted = folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        message = f"{wanted} cannot be written: {folder} is read-only"
        found.find("note", "E-IO", message, "export XDG_CACHE_HOME=FOLDER, one that you may write")
