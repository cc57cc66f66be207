"""The lean runtime: open an exported bundle and run the denoising loop, without torch."""

from dlm_edge.runtime.engine import Engine
from dlm_edge.runtime.events import Cell, Event, Finished, Frame, Result, Started, Text
from dlm_edge.runtime.job import Job
from dlm_edge.runtime.settings import GenerateSettings

__all__ = [
    "Cell",
    "Engine",
    "Event",
    "Finished",
    "Frame",
    "GenerateSettings",
    "Job",
    "Result",
    "Started",
    "Text",
]
