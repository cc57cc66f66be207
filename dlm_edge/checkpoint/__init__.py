"""Checkpoint folders in the Hugging Face layout, plain or quantized by us, opened without trusting them."""

from dlm_edge.checkpoint.checkpoint import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
