"""Checkpoint to ONNX bundle: `dlm_edge.export(checkpoint, out)`."""

import sys
from types import ModuleType
from typing import Any

from dlm_edge.export.pipeline import ExportReport, export

__all__ = ["ExportReport", "export"]


class _CallablePackage(ModuleType):
    """The verb and the folder have one name, so calling the package is calling its one function."""

    def __call__(self, *args: Any, **options: Any) -> ExportReport:
        return export(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
