"""The lean runtime: open an exported bundle and run the denoising loop, without torch."""

import importlib
from typing import TYPE_CHECKING, Any

from dlm_edge.runtime.engine import Engine
from dlm_edge.runtime.events import Cell, EngineStats, Event, Finished, Frame, Result, Started, Text
from dlm_edge.runtime.job import Job
from dlm_edge.runtime.settings import GenerateSettings

if TYPE_CHECKING:
    from dlm_edge.runtime.async_engine import AsyncEngine
    from dlm_edge.runtime.subprocess_engine import SubprocessEngine

__all__ = [
    "AsyncEngine",
    "Cell",
    "Engine",
    "EngineStats",
    "Event",
    "Finished",
    "Frame",
    "GenerateSettings",
    "Job",
    "Result",
    "Started",
    "SubprocessEngine",
    "Text",
]

_ON_DEMAND = {  # asyncio and subprocess take a tenth of a second to import
    "AsyncEngine": "dlm_edge.runtime.async_engine",
    "SubprocessEngine": "dlm_edge.runtime.subprocess_engine",
}


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module 'dlm_edge.runtime' has no attribute {name!r}")
    return getattr(importlib.import_module(_ON_DEMAND[name]), name)
