"""What a step could take at best: its matrix products at the measured peaks, and after them its bytes."""

from __future__ import annotations

from typing import Any

from dlm_edge.bundle import Manifest
from dlm_edge.machine_peaks import Peaks
from dlm_edge.roofline.passes import STEP, planned_passes
from dlm_edge.roofline.work import ModelWork

GIGA = 1e9


def bound_of(manifest: Manifest, prompt: int, peaks: Peaks) -> dict[str, Any]:
    """Seconds: each kind's products at the peak of as many rows as a block has, and all operands once at the bandwidth."""
    at = planned_passes(manifest.model, manifest.cache_layout, prompt)[STEP]
    int8, fp32 = (kind[str(at.logit_rows)].value * GIGA for kind in (peaks.int8, peaks.fp32))
    work = ModelWork.of(manifest).of_pass(at)
    return {
        "products": {kind: w.integer / int8 + (w.operations - w.integer) / fp32 for kind, w in work.items()},
        "bytes": sum(w.bytes for w in work.values()) / (peaks.bandwidth.value * GIGA),
    }
