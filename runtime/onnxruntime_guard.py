"""Import onnxruntime only when exactly one distribution provides it.

Two of them (onnxruntime and onnxruntime-gpu, say) write the same files; whichever was installed last wins in
part, and uninstalling one leaves the other broken.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any

from dlm_edge.errors import EnvironmentProblem

INSTALL = "pip install 'dlm-edge[cpu]' (or 'dlm-edge[cuda]' for an NVIDIA GPU)"
NOT_THE_MODULE = ("onnxruntime-genai", "onnxruntime-extensions", "onnxruntime-tools", "onnxruntime-ep")


def load_onnxruntime() -> Any:
    """The module, after the check. Raises E-ORT with the lines that repair the installation."""
    check_distributions(installed_distributions())
    try:
        module = importlib.import_module("onnxruntime")
        module.disable_telemetry_events()  # this project sends nothing anywhere
        return module
    except Exception as error:
        if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):  # Ctrl-C while the library loads
            raise KeyboardInterrupt from error
        # A missing C++ runtime shows as ImportError, a broken wheel as nearly anything.
        message = f"onnxruntime is installed and cannot be imported: {error}"
        raise EnvironmentProblem("E-ORT", message, "pip install --force-reinstall onnxruntime") from error


def installed_distributions(
    listing: Callable[[], Iterable[metadata.Distribution]] = metadata.distributions,
) -> list[str]:
    """Names of the installed distributions that own the module `onnxruntime`, sorted."""
    names = {(d.metadata["Name"] or "").lower().replace("_", "-") for d in listing()}
    return sorted(n for n in names if n.startswith("onnxruntime") and not n.startswith(NOT_THE_MODULE))


def check_distributions(names: list[str]) -> None:
    if not names:
        raise EnvironmentProblem("E-ORT", "onnxruntime is not installed", INSTALL)
    if len(names) > 1:
        keep = next((n for n in names if n == "onnxruntime-gpu"), names[0])
        repair = f"pip uninstall -y {' '.join(names)} && pip install --force-reinstall --no-deps {keep}"
        message = f"{' and '.join(names)} overwrite each other's files"
        raise EnvironmentProblem("E-ORT", message, repair)
