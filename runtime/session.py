"""Open an ONNX Runtime session on the device that was asked for, or say why not.

ONNX Runtime by itself retries on the CPU after a failure and only prints a line; here that is switched off, and
every exception of its Python layer becomes one of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm_edge.errors import (
    DlmEdgeError,
    EnvironmentProblem,
    InputFileError,
    JobError,
    ResourceError,
    UsageProblem,
)
from dlm_edge.machine import has_dots_of_bytes
from dlm_edge.nearest import nearest
from dlm_edge.runtime.onnxruntime_guard import load_onnxruntime
from dlm_edge.runtime.step_model import Terminated

DEVICES = ("auto", "cpu", "cuda")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
NO_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate memory", "out of memory", "OUT_OF_MEMORY")
NO_OPERATOR = ("is not a registered function/op", "Could not find an implementation", "No Op registered for")
DEVICE_FAULT = ("CUDA failure", "CUDA error", "CUBLAS", "CUDNN")
TERMINATED = "terminate flag"


@dataclass(frozen=True, slots=True)
class OpenSession:
    session: Any  # onnxruntime.InferenceSession
    ort: Any  # the module
    device: str  # cpu or cuda
    native_operators: bool  # False: the graph's own function bodies run instead of our library


def open_session(
    graph: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    target: str = "cpu",
    profile: Path | None = None,
) -> OpenSession:
    """`device` auto means the bundle's `target` where this machine has it; threads None is one per core. `profile`: where
    ONNX Runtime's own profiler writes when the session is told to end it; the file's name begins so.

    Raises E-USAGE, E-DEVICE, E-ORT, E-ONNX, E-OP and E-MEM.
    """
    ort = load_onnxruntime()
    chosen = choose_device(device, target, ort.get_available_providers())
    options = session_options(ort, threads)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    from dlm_edge import kernels
    from dlm_edge.kernels.cuda_library import register_cuda

    # The native operators compute in float32 on the CPU and in float16 on CUDA: a bundle for one target runs on the
    # function bodies when it is opened on the other.
    register = {"cpu": kernels.register, "cuda": register_cuda}[chosen]
    native = target == chosen and register(options)
    providers = [PROVIDERS[chosen]] + ([PROVIDERS["cpu"]] if chosen != "cpu" else [])
    with load_errors(graph):
        session = ort.InferenceSession(
            str(graph), options, providers=providers, enable_fallback=0, read_config_from_model=0
        )
    if session.get_providers()[0] != PROVIDERS[chosen]:
        message = f"ONNX Runtime could not load its {chosen} provider"
        raise EnvironmentProblem("E-DEVICE", message, "see `dlm-edge doctor`, or --device cpu")
    return OpenSession(session, ort, chosen, native)


def session_options(ort: Any, threads: int | None) -> Any:
    """How every session of this runtime computes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = check_threads(threads)
    options.inter_op_num_threads = 1
    # In the order of the graph. The default begins with what the last output needs: nodes that make other outputs run
    # last, and what they read of every layer stays in memory until then.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.log_severity_level = 3  # errors come as exceptions; warnings would land on the host's stderr
    for pool in ("intra_op", "inter_op"):  # spinning threads take whole cores from the host between steps
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    if not has_dots_of_bytes():
        # The u8 x s8 kernels then add pairs in 16 bits, which saturates; this picks kernels that do not. With such dot
        # products it would take 2.5 times as long for nothing.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def choose_device(device: str, target: str, available: list[str]) -> str:
    if device not in DEVICES:
        raise UsageProblem("E-USAGE", f"device {device!r} is not known", nearest(device, DEVICES))
    wanted = target if device == "auto" else device
    if PROVIDERS[wanted] in available:
        return wanted
    if device == "auto":
        message = f"the bundle was exported for {wanted}, which this onnxruntime does not offer"
        hint = "pip install 'dlm-edge[cuda]', choose --device cpu, or export with --target cpu"
        raise EnvironmentProblem("E-DEVICE", message, hint)
    message = f"this onnxruntime does not offer {wanted}; it has {', '.join(available)}"
    raise EnvironmentProblem("E-DEVICE", message, "pip install 'dlm-edge[cuda]', or choose --device cpu")


def check_threads(threads: int | None) -> int:
    if threads is None:
        return 0  # ONNX Runtime's word for one thread per physical core
    if not 1 <= threads <= 1024:
        raise UsageProblem("E-PARAM", f"threads is {threads}", "choose 1 to 1024")
    return threads


@contextmanager
def load_errors(graph: Path) -> Iterator[None]:
    """Whatever ONNX Runtime raises while it opens `graph`, as one of our errors."""
    try:
        yield
    except DlmEdgeError:
        raise
    except Exception as error:  # its Python layer lets UnicodeDecodeError and others through for a damaged file
        text = first_line(error)
        if isinstance(error, MemoryError) or any(part in text for part in NO_MEMORY):
            raise ResourceError(
                "E-MEM", f"{graph}: {text}", "close other programs, or export a smaller model"
            ) from error
        if any(part in text for part in NO_OPERATOR) or type(error).__name__ == "NotImplemented":
            hint = "install the version of dlm-edge that exported it, or export it again"
            raise EnvironmentProblem("E-OP", f"{graph}: {text}", hint) from error
        if type(error).__name__ == "EPFail":
            raise EnvironmentProblem(
                "E-DEVICE", f"{graph}: {text}", "see `dlm-edge doctor`, or --device cpu"
            ) from error
        raise InputFileError("E-ONNX", f"{graph}: {text}", "export the model again") from error


@contextmanager
def run_errors() -> Iterator[None]:
    """Whatever ONNX Runtime raises during a run, as one of our errors; a requested end as Terminated."""
    try:
        yield
    except (DlmEdgeError, Terminated):
        raise
    except Exception as error:
        text = first_line(error)
        if TERMINATED in str(error):
            raise Terminated from None
        if isinstance(error, MemoryError) or any(part in text for part in NO_MEMORY):
            raise ResourceError("E-MEM", f"during a step: {text}", "shorten the prompt or the output") from error
        if any(part in text for part in DEVICE_FAULT) or type(error).__name__ == "EPFail":
            raise JobError("E-DEVICE", f"the device failed during a step: {text}", "open the engine again") from error
        raise JobError("E-ORT", f"ONNX Runtime failed during a step: {text}", "see `dlm-edge doctor`") from error


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
