"""`dlm-edge VERB`: every verb parses, calls one library function and prints what came back."""

from dlm_edge.cli.program import main

__all__ = ["main"]
