"""One run over the layers of a checkpoint: what is finished is kept in the work folder and never done again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import Tensor

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.errors import Stopped
from dlm_edge.models.transformer import Layer
from dlm_edge.quant.calibration import Calibration
from dlm_edge.quant.finished import FinishedLayers, file_name, layer_key
from dlm_edge.quant.held_out import held_out_states
from dlm_edge.quant.invariance import InvarianceCheck
from dlm_edge.quant.layer_file import StoredTensor, packed_tensors, write_layer_file
from dlm_edge.quant.layer_pass import advance
from dlm_edge.quant.layer_step import LayerJob, quantize_with_states, quantize_without_states
from dlm_edge.quant.methods import QuantizedLinear, find_method
from dlm_edge.quant.mixed import more_bits
from dlm_edge.quant.moments import Moments
from dlm_edge.quant.outcome import BITS, OUTER, QUALITY, ROTATION, Outcome
from dlm_edge.quant.outer import chunks, outer_tensors, packed_chunks
from dlm_edge.quant.output_folder import audit, write_folder
from dlm_edge.quant.plan import Plan, QuantizeOptions
from dlm_edge.quant.probing import allocate_bits
from dlm_edge.quant.quality_probe import QualityProbe
from dlm_edge.quant.report import LayerReport, layer_line
from dlm_edge.quant.rotation import Rotation
from dlm_edge.quant.source_weights import SourceWeights
from dlm_edge.quant.statistics import InputStatistics
from dlm_edge.quant.treatments import Decision
from dlm_edge.work_folder import WorkFolder


class Job:
    """One run over all layers. `work.records` holds what is finished, from this run or an earlier one."""

    def __init__(
        self,
        plan: Plan,
        options: QuantizeOptions,
        calibrated: Calibration | None,
        work: WorkFolder,
        say: Callable[[str], None],
    ) -> None:
        self.source: Checkpoint = plan.checkpoint
        self.options, self.plan, self.work, self.say = options, plan, work, say
        self.calibrated, self.recipe = calibrated, options.recipe
        rotation = Rotation.of(self.source.spec, options.seed) if self.recipe.rotate else None
        self.weights = SourceWeights(self.source, zero_nonfinite=options.allow_nonfinite, rotation=rotation)
        self.done = FinishedLayers(work, plan, self.weights)
        self.outcome = Outcome(plan, options, calibrated, self.done)
        self.hidden: list[Tensor] = []
        self.full: list[Tensor] | None = None
        self.probe: QualityProbe | None = None
        self.invariance: InvarianceCheck | None = None
        self.moments: dict[str, Moments] = {}
        self.layer_seconds: list[float] = []  # of the layers of this run

    def run(self) -> None:
        n_layers = self.source.spec.n_layers
        try:
            self.quantize_layers()
        except KeyboardInterrupt:
            done = sum(map(self.done.has_layer, range(n_layers)))
            message = f"stopped with {done} of {n_layers} layers finished"
            raise Stopped("E-STOPPED", message, "continue with the same command and --resume") from None
        self.source.check_unchanged()
        write_folder(self.work.path, self.plan, self.options, self.outcome.record(), self.done.where(OUTER))
        if self.options.imatrix:
            self.done.write_imatrix()
        audit(self.work.path, self.plan)
        self.source.check_unchanged()

    def quantize_layers(self) -> None:
        n_layers = self.source.spec.n_layers
        if not self.work.is_done(OUTER):
            self.quantize_outer()
        if find_method(self.recipe.method).allocates and not self.work.is_done(BITS):
            self.say("probing   every layer at 2, 3, 4 and 8 bits")
            assert self.calibrated is not None
            allotted = allocate_bits(self.plan, self.recipe, self.weights, self.calibrated.batches)
            self.work.record(BITS, names=[], **allotted)
        missing = [i for i in range(n_layers) if not self.is_finished(i)]
        if self.calibrated and not (not missing and self.work.is_done(QUALITY)):
            self.open_streams()
        if self.weights.rotation is not None and not (not missing and self.work.is_done(ROTATION)):
            self.invariance = InvarianceCheck(self.weights)
        for i in range(n_layers if self.probe or self.invariance else max(missing, default=-1) + 1):
            if i in missing:
                self.quantize_layer(i)
            else:
                self.pass_finished(i)
        if self.invariance:
            self.work.record(ROTATION, names=[], embedding=self.invariance.embedding, logits=self.invariance.logits())
        if self.probe:
            self.work.record(QUALITY, names=[], quality=self.measured_quality(self.probe))

    def is_finished(self, i: int) -> bool:
        return self.done.has_layer(i) and (self.done.has_moments(i) or not self.options.imatrix)

    def quantize_outer(self) -> None:
        tensors, records = outer_tensors(self.plan, self.weights)
        # What is not packed is read, and its zeroed values are counted, only here.
        write_layer_file(self.work.path / file_name(OUTER), tensors)
        untold = self.weights.zeroed_beside(self.plan.outer_roles, self.plan.outer)
        self.record_file(OUTER, tensors, layers=[msgspec.to_builtins(r) for r in records], untold=untold)

    def open_streams(self) -> None:
        assert self.calibrated is not None

        def embed(which: str, ids: Tensor) -> Tensor:
            if which == "after" and "embed.weight" in self.plan.outer:
                return self.done.gathered_embedding(OUTER, ids)
            return self.weights.embedded(ids)

        ids = [batch.ids for batch in self.calibrated.batches]
        self.hidden = [embed("after", i) for i in ids]
        if find_method(self.recipe.method).needs_full or self.recipe.tuning is not None:
            self.full = [embed("before", i) for i in ids]
        self.probe = QualityProbe(self.plan.spec, held_out_states(self.source, self.options), embed)

    def quantize_layer(self, i: int) -> None:
        started, changed = time.perf_counter(), None
        if self.invariance is None:
            layer = self.weights.layer(i)
        else:
            layer = self.weights.source_layer(i)
            changed = self.invariance.turn(i, layer)
        names = self.plan.names(i)
        bits, decided = self.bits_of(names), self.decided(names, changed)
        job = LayerJob(self.plan.spec, names, bits, self.recipe, self.options.strict, self.note_inputs, decided)
        if self.calibrated:
            zero = self.options.allow_nonfinite
            results = quantize_with_states(
                layer, job, self.calibrated.batches, self.hidden, self.full, zero_nonfinite=zero
            )
        else:
            results = quantize_without_states(layer, job)
        for result in results:
            zeroed = self.weights.zeroed.get(f"layers.{i}.{result.linear}.weight")
            if zeroed:
                result.record.notes.append(f"{zeroed} NaN or infinite weights set to zero")
        roles = [r for r in self.weights.zeroed if r.startswith(f"layers.{i}.")]
        untold = self.weights.zeroed_beside(roles, self.plan.roles)
        if results:
            results[0].record.notes.extend(untold)
        self.keep(i, layer, results, time.perf_counter() - started, [] if results else untold, changed)
        if self.calibrated:
            self.advance_beside(i, layer, full_too=not find_method(self.recipe.method).needs_full)

    def decided(self, names: dict[str, str], changed: float | None) -> dict[str, list[Decision]]:
        """What the job does about outliers beside its method; `changed` by the rotation of the layer."""
        found: dict[str, list[Decision]] = {linear: [] for linear in names}
        for linear, name in names.items():
            if changed is not None:
                why = f"residual stream and heads, layer output changed by {changed:.1e}"
                found[linear].append(Decision("rotate", why))
            if self.work.is_done(BITS):
                line = self.work.records[BITS]
                found[linear] += more_bits(line["bits"][name], self.recipe.bits, line["errors"][name])
        return found

    def bits_of(self, names: dict[str, str]) -> dict[str, float]:
        chosen = self.work.records[BITS]["bits"] if self.work.is_done(BITS) else {}
        return {linear: chosen.get(name, self.recipe.bits) for linear, name in names.items()}

    def note_inputs(self, linears: list[str], inputs: InputStatistics) -> None:
        moments = Moments.of(inputs)
        self.moments.update(dict.fromkeys(linears, moments))

    def advance_beside(self, i: int, quantized: Layer, *, full_too: bool = True) -> None:
        """The streams that only look on: the source's own, and the held-out states in both models."""
        full = self.full if full_too else None
        if full is None and self.probe is None:
            return
        source, spec = self.weights.layer(i), self.plan.spec
        zero = self.options.allow_nonfinite
        if full is not None:
            assert self.calibrated is not None
            advance(source, spec, self.calibrated.batches, full, zero_nonfinite=zero)
        if self.probe is not None:
            self.probe.advance(source, self.done.round_inputs(i, quantized))

    def pass_finished(self, i: int) -> None:
        """Advance the states through a layer of an earlier run, with the weights that it left."""
        if self.invariance is not None:
            self.invariance.advance(i, self.weights.source_layer(i))
        if self.calibrated is None:
            return
        layer, zero = self.done.layer(i), self.options.allow_nonfinite
        advance(layer, self.plan.spec, self.calibrated.batches, self.hidden, zero_nonfinite=zero)
        self.advance_beside(i, layer)

    def measured_quality(self, probe: QualityProbe) -> list[dict[str, Any]]:
        head = "embed.weight" if self.plan.spec.tied_head else "head.weight"
        gain = torch.from_numpy(self.weights.rows("final_norm.weight", 0, self.plan.spec.hidden_size))
        after = chunks(self.weights, head)
        if head in self.plan.outer:
            after = packed_chunks(self.done.packed_outer(OUTER, head))
        return probe.result((gain, chunks(self.weights, head)), (gain, after))

    def keep(
        self,
        i: int,
        layer: Layer,
        results: list[QuantizedLinear],
        seconds: float,
        untold: list[str],
        changed: float | None,
    ) -> None:
        packed = [t for r in results for t in packed_tensors(r.record.name, r.tensor)]
        for result in results:
            if result.linear in self.moments:
                result.record.input_peak = self.moments[result.linear].peak
        if self.options.imatrix:
            self.done.write_moments(i, self.moments)
        tensors = packed + self.done.plain_tensors(i, layer)
        write_layer_file(self.work.path / file_name(layer_key(i)), tensors)
        self.record_file(
            layer_key(i),
            tensors,
            layers=[msgspec.to_builtins(r.record) for r in results],
            seconds=[r.seconds for r in results],
            layer_seconds=seconds,
            fallbacks=[r.record.name for r in results if r.fell_back],
            packed_bytes=sum(t.size_bytes for t in packed),
            untold=untold,
            rotation_change=changed,
        )
        self.moments.clear()
        left = sum(not self.is_finished(j) for j in range(self.source.spec.n_layers))
        self.layer_seconds.append(seconds)
        eta = statistics.fmean(self.layer_seconds) * left
        for n, r in enumerate(results, 1):
            done = sum(len(self.plan.names(j)) for j in range(i)) + n
            self.say(layer_line(LayerReport.of(r.record, r.seconds), done, len(self.plan.roles), eta))

    def record_file(self, key: str, tensors: list[StoredTensor], **info: Any) -> None:
        """The journal line that makes the file count."""
        self.work.record(key, names=[file_name(key)], tensors=[t.name for t in tensors], **info)
