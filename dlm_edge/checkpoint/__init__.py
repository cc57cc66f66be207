"""Checkpoint folders in the Hugging Face layout, plain or quantized by us, opened without trusting them."""

from dlm_edge.checkpoint.checkpoint import Checkpoint
from dlm_edge.checkpoint.opening import open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
