"""Checkpoint to ONNX bundle."""

from dlm_edge.export.pipeline import ExportReport, export

__all__ = ["ExportReport", "export"]
