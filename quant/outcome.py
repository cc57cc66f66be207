"""What a job tells of itself: the record, the rows of the report, all read from what its journal holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

import dlm_edge
from dlm_edge.quant.calibration import Calibration
from dlm_edge.quant.finished import FinishedLayers
from dlm_edge.quant.invariance import summary
from dlm_edge.quant.plan import Plan, QuantizeOptions
from dlm_edge.quant.report import LayerReport
from dlm_edge.quantized import LayerRecord, QuantizationRecord

OUTER, BITS, ROTATION, QUALITY = "outer", "bits", "rotation", "quality"  # journal keys of what belongs to no layer


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a job whose layers are all finished, in this run or an earlier one."""

    plan: Plan
    options: QuantizeOptions
    calibrated: Calibration | None
    done: FinishedLayers

    def records(self) -> list[LayerRecord]:
        """Of every weight; the first also tells what belongs to none."""
        lines = [self.done.work.records[OUTER], *self.done.lines()]
        records = [msgspec.convert(layer, LayerRecord) for line in lines for layer in line["layers"]]
        records[0].notes.extend(note for line in lines for note in line["untold"])
        return records

    def reports(self) -> list[LayerReport]:
        seconds = [0.0] * len(self.plan.outer) + [s for line in self.done.lines() for s in line["seconds"]]
        return [LayerReport.of(record, s) for record, s in zip(self.records(), seconds, strict=True)]

    def fallbacks(self) -> list[str]:
        return [name for line in self.done.lines() for name in line["fallbacks"]]

    def packed_bytes(self) -> int:
        return sum(int(line["packed_bytes"]) for line in self.done.lines())

    def quality(self) -> list[dict[str, Any]]:
        return list(self.done.work.records[QUALITY]["quality"]) if self.done.work.is_done(QUALITY) else []

    def rotation(self) -> dict[str, Any]:
        """How much the rotation changed the model in full precision; empty without one."""
        if not self.done.work.is_done(ROTATION):
            return {}
        line, layers = self.done.work.records[ROTATION], [line["rotation_change"] for line in self.done.lines()]
        return summary(self.plan.checkpoint.spec, line["embedding"], layers, line["logits"])

    def record(self) -> QuantizationRecord:
        recipe, options, source = self.options.recipe, self.options, self.plan.checkpoint
        return QuantizationRecord(
            method=recipe.method,
            bits=recipe.bits,
            group_size=recipe.group_size,
            seed=options.seed,
            recipe={"name": options.recipe_name, **msgspec.to_builtins(recipe)},
            calibration=self.calibrated.description() if self.calibrated else {},
            source={"name": source.name, "files": source.weight_files()},
            tool_version=dlm_edge.__version__,
            layers=self.records(),
            skipped=list(self.plan.skipped),
            fallbacks=self.fallbacks(),
            quality=self.quality(),
            rotation=self.rotation(),
        )
