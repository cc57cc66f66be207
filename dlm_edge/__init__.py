"""dlm-edge: quantize, export and run diffusion language models.

    dlm_edge.quantize("reference", "packed", method="gptq", bits=4)
    dlm_edge.export("packed", "bundle")
    with dlm_edge.Engine.open("bundle") as engine:
        print(engine.generate("copy: Ada Bob =>").text)

The names below are imported when they are used, so that the runtime needs neither torch nor onnx.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "quant").is_dir():
    __path__.append(str(_checkout))  # a source checkout keeps quant/, export/, ... beside this folder

_PUBLIC = {
    "AsyncEngine": "dlm_edge.runtime",
    "Engine": "dlm_edge.runtime",
    "SubprocessEngine": "dlm_edge.runtime",
    "convert": "dlm_edge.conversion",
    "estimate": "dlm_edge.estimation",
    "evaluate": "dlm_edge.evaluation.evaluate",
    "inspect_artefact": "dlm_edge.inspection",
    "quantize": "dlm_edge.quant",
    "train_filter": "dlm_edge.filter_training",
    "tune": "dlm_edge.tuning.tune",
}


def __getattr__(name: str) -> Any:
    if name == "export":  # the package is callable: dlm_edge.export(checkpoint, out)
        return importlib.import_module("dlm_edge.export")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dlm_edge' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
