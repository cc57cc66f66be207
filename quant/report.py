"""What a quantization did: the keys of `dlm-edge quantize --json`."""

from __future__ import annotations

from typing import Any

import msgspec

from dlm_edge.quant.treatments import is_none
from dlm_edge.quantized import LayerRecord


class LayerReport(msgspec.Struct, frozen=True, kw_only=True):
    """`error` and `rtn_error`: ||(W - W') X||^2 / ||W X||^2 on the calibration states, for this method and for rounding
    to nearest; None for methods that see no states. `tokens`, `effective_rank`, `input_peak`, `damping` and
    `treatment` as in LayerRecord."""

    name: str
    bits: int
    method: str
    error: float | None
    rtn_error: float | None
    tokens: int | None
    effective_rank: float | None
    input_peak: float | None
    damping: float | None
    treatment: list[str]
    seconds: float
    notes: list[str]

    @classmethod
    def of(cls, record: LayerRecord, seconds: float) -> LayerReport:
        return cls(
            name=record.name,
            bits=record.bits,
            method=record.method,
            error=record.error,
            rtn_error=record.rtn_error,
            tokens=record.tokens,
            effective_rank=record.effective_rank,
            input_peak=record.input_peak,
            damping=record.damping,
            treatment=record.treatment,
            seconds=round(seconds, 3),
            notes=record.notes,
        )


class QuantizeReport(msgspec.Struct, frozen=True, kw_only=True):
    """`bits_per_weight` is stored bits, scales included, per weight of the quantized linear layers; embedding and
    head, 8 bits each, are not in it.

    `seconds` and `peak_rss_bytes` are of this run alone when the job was resumed.
    """

    output: str
    method: str
    bits_per_weight: float
    size_bytes: int
    source_size_bytes: int
    seconds: float
    peak_rss_bytes: int
    layers: list[LayerReport]
    fallbacks: list[str]
    quality: list[dict[str, Any]] = []  # {low, high, tokens, before, after}: masked NLL by share of hidden tokens
    rotation: dict[str, Any] = {}  # {tokens, largest_change, where, logits_change, allowed} of a rotated model
    recipe: dict[str, Any] = {}
    calibration: dict[str, Any] = {}
    dry_run: bool = False


def layer_line(report: LayerReport, done: int, total: int, eta_s: float) -> str:
    """One progress line."""
    errors = ""
    if report.error is not None:
        errors = f"  error {report.error:.2e}"
    if report.rtn_error is not None:
        errors += f"  rtn {report.rtn_error:.2e}"
    said = [*(t for t in report.treatment if not is_none(t)), *report.notes]
    notes = f"  ({'; '.join(said)})" if said else ""
    return f"{done:4}/{total}  {report.name}{errors}  {report.seconds:.1f} s  ETA {eta_s:.0f} s{notes}"
