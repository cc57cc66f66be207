"""`dlm_edge.quantize` behind optimum's quantizer interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimum.quantization_base import OptimumQuantizer

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.errors import UsageProblem
from dlm_edge.quant import QuantizeReport, quantize


class DlmEdgeQuantizer(OptimumQuantizer):
    """Quantizes one checkpoint folder, or one of the shipped models `reference` and `reference-full`."""

    def __init__(self, model: str | Path) -> None:
        self.model = model

    @classmethod
    def from_pretrained(cls, model_or_path: str | Path, file_name: str | None = None) -> DlmEdgeQuantizer:
        """Checks the checkpoint at once, so that what is wrong with it shows before a job is set up."""
        if file_name is not None:
            raise UsageProblem("E-USAGE", "a checkpoint is a folder, file_name names one file of it", "leave it out")
        open_checkpoint(model_or_path)
        return cls(model_or_path)

    def quantize(self, save_dir: str | Path, file_prefix: str | None = None, **options: Any) -> QuantizeReport:
        """Write the quantized checkpoint `save_dir`; options, report and errors are those of `dlm_edge.quantize`.

        The files of a checkpoint have fixed names: `file_prefix` is refused (E-USAGE).
        """
        if file_prefix is not None:
            message = f"file_prefix {file_prefix!r} cannot be applied, the files of a checkpoint have fixed names"
            raise UsageProblem("E-USAGE", message, "leave it out")
        return quantize(self.model, save_dir, **options)
