"""Rows of logits to scores: the likeliest id of each, how sure the model is of it, and the runner-up."""

from dlm_edge.kernels.score_rows.fast import score_rows
from dlm_edge.kernels.score_rows.reference import RowScores

__all__ = ["RowScores", "score_rows"]
