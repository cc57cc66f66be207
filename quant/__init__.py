"""Quantization: calibration states, one file per method, and the layer-streamed job."""

from dlm_edge.quant.pipeline import plan_only, quantize
from dlm_edge.quant.report import LayerReport, QuantizeReport

__all__ = ["LayerReport", "QuantizeReport", "plan_only", "quantize"]
