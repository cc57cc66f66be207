"""Torch models: the reference that calibration runs on and that exported graphs are checked against."""

from dlm_edge.models.loading import build_model, load_model

__all__ = ["build_model", "load_model"]
