"""One run over the layers of a checkpoint: what is finished is kept in the work folder and never done again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

import dlm_edge
from dlm_edge.checkpoint import Checkpoint
from dlm_edge.errors import Stopped
from dlm_edge.journal import WorkFolder
from dlm_edge.models.transformer import Layer
from dlm_edge.quant import rtn
from dlm_edge.quant.calibration import Calibration
from dlm_edge.quant.layer_file import StoredTensor, packed_tensors, read_packed_tensors, write_layer_file
from dlm_edge.quant.layer_pass import advance
from dlm_edge.quant.layer_step import quantize_with_states, quantize_without_states
from dlm_edge.quant.methods import METHODS, QuantizedLinear
from dlm_edge.quant.output_folder import audit, write_folder
from dlm_edge.quant.plan import OUTER_BITS, Plan, QuantizeOptions
from dlm_edge.quant.report import LayerReport, layer_line
from dlm_edge.quant.source_weights import SourceWeights
from dlm_edge.quantized import LayerRecord, QuantizationRecord, QuantizedTensor, dequantize

OUTER_ROWS = 4096  # rounded at a time
OUTER = "outer"  # journal key and file name of what belongs to no layer


def layer_key(i: int) -> str:
    return f"layer-{i:04}"


def file_name(key: str) -> str:
    return f"{key}.safetensors"


class Job:
    """One run over all layers. `work.records` holds what is finished, from this run or an earlier one."""

    def __init__(
        self,
        source: Checkpoint,
        options: QuantizeOptions,
        plan: Plan,
        calibrated: Calibration | None,
        work: WorkFolder,
        say: Callable[[str], None],
    ) -> None:
        self.source, self.options, self.plan, self.work, self.say = source, options, plan, work, say
        self.calibrated = calibrated
        self.config = METHODS[options.method].config(bits=options.bits, group_size=options.group_size)
        self.weights = SourceWeights(source, zero_nonfinite=options.allow_nonfinite)
        self.hidden: list[Tensor] = []
        self.started, self.finished_now = time.perf_counter(), 0

    def run(self) -> None:
        try:
            self.quantize_layers()
        except KeyboardInterrupt:
            done = sum(self.work.is_done(layer_key(i)) for i in range(self.source.spec.n_layers))
            message = f"stopped with {done} of {self.source.spec.n_layers} layers finished"
            raise Stopped("E-STOPPED", message, "continue with the same command and --resume") from None
        self.source.check_unchanged()
        write_folder(self.work.path, self.source, self.options, self.record(), self.where())
        audit(self.work.path, self.source, self.plan)
        self.source.check_unchanged()

    def quantize_layers(self) -> None:
        n_layers = self.source.spec.n_layers
        if not self.work.is_done(OUTER):
            self.write_outer()
        last_missing = max((i for i in range(n_layers) if not self.work.is_done(layer_key(i))), default=-1)
        if self.calibrated and last_missing >= 0:
            table = torch.from_numpy(self.weights.load("embed.weight"))
            self.hidden = [table[batch.ids] for batch in self.calibrated.batches]
            del table
        for i in range(last_missing + 1):
            if not self.work.is_done(layer_key(i)):
                self.quantize_layer(i)
            elif self.calibrated:
                self.pass_finished(i)

    def quantize_layer(self, i: int) -> None:
        layer, names, options = self.weights.layer(i), self.names(i), self.options
        if self.calibrated:
            results = quantize_with_states(
                layer,
                self.source.spec,
                self.calibrated.batches,
                self.hidden,
                names,
                options.method,
                self.config,
                strict=options.strict,
                zero_nonfinite=options.allow_nonfinite,
            )
        else:
            results = quantize_without_states(layer, names, options.method, self.config, strict=options.strict)
        for result in results:
            zeroed = self.weights.zeroed.get(f"layers.{i}.{result.linear}.weight")
            if zeroed:
                result.record.notes.append(f"{zeroed} NaN or infinite weights set to zero")
        self.keep(i, results)

    def keep(self, i: int, results: list[QuantizedLinear]) -> None:
        packed = [t for r in results for t in packed_tensors(r.record.name, r.tensor)]
        self.write_file(
            layer_key(i),
            packed + self.untouched(i),
            layers=[msgspec.to_builtins(r.record) for r in results],
            seconds=[r.seconds for r in results],
            fallbacks=[r.record.name for r in results if r.fell_back],
            packed_bytes=sum(t.size_bytes for t in packed),
        )
        self.finished_now += 1
        left = sum(not self.work.is_done(layer_key(j)) for j in range(self.source.spec.n_layers))
        eta = (time.perf_counter() - self.started) / self.finished_now * left
        for n, r in enumerate(results, 1):
            done = sum(len(self.names(j)) for j in range(i)) + n
            self.say(layer_line(LayerReport.of(r.record, r.seconds), done, len(self.plan.roles), eta))

    def pass_finished(self, i: int) -> None:
        """Advance the states through a layer of an earlier run, with the weights that it left."""
        assert self.calibrated is not None
        advance(self.finished_layer(i), self.source.spec, self.calibrated.batches, self.hidden)

    def finished_layer(self, i: int) -> Layer:
        layer, names = self.weights.layer(i), self.names(i)
        packed = read_packed_tensors(self.work.path / file_name(layer_key(i)), list(names.values()), self.options.bits)
        for linear, name in names.items():
            getattr(layer, linear).weight.data.copy_(torch.from_numpy(dequantize(packed[name])))
        return layer

    def write_outer(self) -> None:
        """Final norm, and embedding and head in 8 bits (or as they are, where the plan says so)."""
        tensors, records = [], []
        for role in self.source.roles():
            if role in self.plan.outer:
                name = self.source.tensor_name(role)
                tensors += packed_tensors(name, self.round_outer(role))
                records.append(
                    LayerRecord(name=name, bits=OUTER_BITS, group_size=self.options.group_size, method="rtn")
                )
            elif not role.startswith("layers."):
                tensors.append(self.stored(role))
        self.write_file(OUTER, tensors, layers=[msgspec.to_builtins(r) for r in records])

    def round_outer(self, role: str) -> QuantizedTensor:
        """An embedding or head rounded to nearest, some rows at a time: it is the largest tensor there is."""
        config = rtn.RtnConfig(bits=OUTER_BITS, group_size=self.options.group_size)
        name, n_rows = self.source.tensor_name(role), self.source.shape(role)[0]
        parts = [
            rtn.quantize(name, self.weights.rows(role, first, min(first + OUTER_ROWS, n_rows)), config)
            for first in range(0, n_rows, OUTER_ROWS)
        ]
        packed, scales = np.concatenate([p.packed for p in parts]), np.concatenate([p.scales for p in parts])
        return QuantizedTensor(packed, scales, OUTER_BITS)

    def untouched(self, i: int) -> list[StoredTensor]:
        prefix, packed = f"layers.{i}.", set(self.plan.roles)
        return [self.stored(r) for r in self.source.roles() if r.startswith(prefix) and r not in packed]

    def stored(self, role: str) -> StoredTensor:
        name, shape = self.source.tensor_name(role), self.source.shape(role)
        return StoredTensor(name, self.source.dtype(role), shape, self.weights.stored(role))

    def write_file(self, key: str, tensors: list[StoredTensor], **info: Any) -> None:
        """The file, then the journal line that makes it count."""
        write_layer_file(self.work.path / file_name(key), tensors)
        self.work.record(key, names=[file_name(key)], tensors=[t.name for t in tensors], **info)

    def names(self, i: int) -> dict[str, str]:
        """Linears of layer `i` to be quantized, and their tensor names."""
        return {n: self.source.tensor_name(f"layers.{i}.{n}.weight") for n in self.plan.linears_of(i)}

    def finished(self) -> list[dict[str, Any]]:
        """Journal lines of the layers in layer order."""
        return [self.work.records[layer_key(i)] for i in range(self.source.spec.n_layers)]

    def records(self) -> list[LayerRecord]:
        lines = [self.work.records[OUTER], *self.finished()]
        return [msgspec.convert(layer, LayerRecord) for line in lines for layer in line["layers"]]

    def reports(self) -> list[LayerReport]:
        seconds = [0.0] * len(self.plan.outer) + [s for line in self.finished() for s in line["seconds"]]
        return [LayerReport.of(record, s) for record, s in zip(self.records(), seconds, strict=True)]

    def fallbacks(self) -> list[str]:
        return [name for line in self.finished() for name in line["fallbacks"]]

    def packed_bytes(self) -> int:
        return sum(int(line["packed_bytes"]) for line in self.finished())

    def where(self) -> dict[str, str]:
        """Stored tensor name to file."""
        lines = [*self.finished(), self.work.records[OUTER]]
        return {name: file_name(line["key"]) for line in lines for name in line["tensors"]}

    def record(self) -> QuantizationRecord:
        options = self.options
        return QuantizationRecord(
            method=options.method,
            bits=options.bits,
            group_size=options.group_size,
            seed=options.seed,
            calibration=self.calibrated.description() if self.calibrated else {},
            source={"name": self.source.name, "files": self.source.weight_files()},
            tool_version=dlm_edge.__version__,
            layers=self.records(),
            skipped=list(self.plan.skipped),
            fallbacks=self.fallbacks(),
        )
