"""The step models of a bundle: what they weigh, whether they can run here, and opening them."""

from __future__ import annotations

from dlm_edge.bundle import Bundle
from dlm_edge.errors import EnvironmentProblem
from dlm_edge.kernels import OPERATOR_VERSION
from dlm_edge.runtime.ort_step_model import OrtStepModel
from dlm_edge.runtime.priority import in_low_thread
from dlm_edge.runtime.session import OpenSession, open_session


def weight_bytes(bundle: Bundle) -> int:
    return sum(entry.size for entry in bundle.manifest.files if entry.name.startswith("model.onnx"))


def check_operators(bundle: Bundle) -> None:
    """Raises E-OP for a bundle that needs later operators than this installation has."""
    needed = bundle.manifest.operator_version
    if needed > OPERATOR_VERSION:
        found = f"operators of version {needed}, this installation has {OPERATOR_VERSION}"
        hint = "install the version of dlm-edge that exported it"
        raise EnvironmentProblem("E-OP", f"{bundle.path} needs {found}", hint)


def open_models(
    bundle: Bundle, device: str, *, threads: int | None, parallel: int, background: bool
) -> tuple[OpenSession, list[OrtStepModel]]:
    """One session, and the state of `parallel` sequences over it. Raises what open_session raises."""
    manifest = bundle.manifest

    def open_here() -> OpenSession:
        return open_session(bundle.graph_path, device=device, threads=threads, target=manifest.target)

    opened = in_low_thread(open_here) if background else open_here()
    layout, group = manifest.cache_layout, manifest.cache_group
    return opened, [OrtStepModel(opened, manifest.model, layout, group) for _ in range(parallel)]
