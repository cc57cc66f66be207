"""Quantize the linears of one layer, each on inputs that have passed everything quantized before it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_edge.families.spec import ModelSpec
from dlm_edge.models.transformer import Layer
from dlm_edge.quant.layer_pass import LINEARS, Stage, advance, run_stages
from dlm_edge.quant.methods import QuantizedLinear, find_method, quantize_linear
from dlm_edge.quant.recipes import Recipe
from dlm_edge.quant.states import Batch
from dlm_edge.quant.statistics import InputStatistics
from dlm_edge.quant.tuning import TuningConfig, tune_layer
from dlm_edge.quantized import PackedWeight, QuantizedTensor, dequantize


@dataclass(frozen=True, slots=True)
class LayerJob:
    """One layer to be quantized. `names` maps its linears to tensor names, `bits` to their bits; `seen` is shown the
    statistics of every group of linears before they are used."""

    spec: ModelSpec
    names: Mapping[str, str]
    bits: Mapping[str, float]
    recipe: Recipe
    strict: bool
    seen: Callable[[list[str], InputStatistics], None] = lambda linears, inputs: None


def quantize_without_states(layer: Layer, job: LayerJob) -> list[QuantizedLinear]:
    """Every weight by itself; those of `layer` stay as they are."""
    return [round_one(job, linear, weight_of(layer, linear), None) for linear in LINEARS if linear in job.names]


def quantize_with_states(
    layer: Layer,
    job: LayerJob,
    batches: list[Batch],
    hidden: list[Tensor],
    full: list[Tensor] | None,
    *,
    zero_nonfinite: bool = False,
) -> list[QuantizedLinear]:
    """As above, with statistics of the inputs; `hidden` and the weights of `layer` advance to the quantized ones.

    `full` are the layer's inputs in the full-precision model, for methods and tunings that compare with it.
    """
    method, recipe = find_method(job.recipe.method), job.recipe
    treatments: dict[str, list[str]] = {}
    if method.prepare is not None and job.names:
        config = recipe.config(job.spec.hidden_size, min(job.bits.values()))
        treatments = method.prepare(layer, job.spec, batches, hidden, config)
    original = copy.deepcopy(layer) if method.needs_full or recipe.tuning is not None else None
    before = list(hidden) if recipe.tuning is not None else []
    drifting = list(full) if full is not None and method.needs_full else None
    beside = None if drifting is None or original is None else run_stages(original, job.spec, batches, drifting)
    if recipe.tuning is None:
        original = None  # `beside` holds it as long as it is of use
    done = round_stages(layer, beside, job, batches, hidden, drifting, zero_nonfinite)
    for result in done:
        result.record.treatment += treatments.get(result.linear, [])
    if recipe.tuning is None:
        return done
    assert original is not None and full is not None
    tuned = tune(layer, original, job, batches, before, full, done)
    hidden[:] = before
    advance(layer, job.spec, batches, hidden, zero_nonfinite=zero_nonfinite)
    return tuned


def round_stages(
    layer: Layer,
    beside: Generator[Stage] | None,
    job: LayerJob,
    batches: list[Batch],
    hidden: list[Tensor],
    full: list[Tensor] | None,
    zero_nonfinite: bool,
) -> list[QuantizedLinear]:
    """The stages of the layer in forward order; `beside` are those of the original on its stream `full`."""
    done, zeroed = list[QuantizedLinear](), list[int]()
    for linears, inputs in run_stages(layer, job.spec, batches, hidden, zeroed if zero_nonfinite else None):
        full_inputs = next(beside)[1] if beside else None
        adds = linears in (("o",), ("down",)) and full is not None  # these add to the residual stream
        wanted = [linear for linear in linears if linear in job.names]
        if not wanted:
            continue
        gaps = (f - h for f, h in zip(full or [], hidden, strict=True)) if adds else None
        statistics = collect(job.names[wanted[0]], batches, inputs, full_inputs, gaps)
        if linears == ("down",) and beside and full_inputs is not None and full is not None:
            # The largest second moment comes now, and nothing follows that would read the original's stream.
            beside.close()
            full_inputs.clear()
            full.clear()
        job.seen(wanted, statistics)
        for linear in wanted:
            weight = weight_of(layer, linear)
            result = round_one(job, linear, weight, statistics)
            if zeroed and zeroed[-1]:
                result.record.notes.append(f"{zeroed[-1]} NaN or infinite input values counted as zero")
            weight.copy_(torch.from_numpy(dequantize(result.tensor)))
            done.append(result)
    return done


def round_one(job: LayerJob, linear: str, weight: Tensor, inputs: InputStatistics | None) -> QuantizedLinear:
    config = job.recipe.config(weight.shape[1], job.bits[linear])
    return quantize_linear(job.recipe.method, config, linear, job.names[linear], weight, inputs, strict=job.strict)


def tune(
    layer: Layer,
    original: Layer,
    job: LayerJob,
    batches: list[Batch],
    before: list[Tensor],
    full: list[Tensor],
    done: list[QuantizedLinear],
) -> list[QuantizedLinear]:
    """The same linears with tuned scales and zeros; norm gains of `layer` change with them."""
    uniform: dict[str, QuantizedTensor] = {r.linear: r.tensor for r in done if isinstance(r.tensor, QuantizedTensor)}
    config = TuningConfig(**(job.recipe.tuning or {}))
    outcome = tune_layer(layer, original, uniform, job.spec, batches, before, full, config)
    tensors: dict[str, PackedWeight] = {r.linear: r.tensor for r in done}
    tensors.update(outcome.tensors)
    for result in done:
        tensor = tensors[result.linear]
        weight_of(layer, result.linear).copy_(torch.from_numpy(dequantize(tensor)))
        result.record.notes += outcome.notes
        if outcome.loss_after < outcome.loss_before:  # `error` is that of the rounding, before this
            change = outcome.loss_after / outcome.loss_before - 1
            result.record.notes.append(f"tuned: error of the layer's output {change:+.0%}")
        if isinstance(tensor, QuantizedTensor):
            result.record.zero = tensor.zero_kind
    return [QuantizedLinear(r.linear, tensors[r.linear], r.record, r.seconds, r.fell_back) for r in done]


def collect(
    name: str,
    batches: list[Batch],
    inputs: list[Tensor],
    full_inputs: list[Tensor] | None = None,
    residual_gaps: Iterator[Tensor] | None = None,
) -> InputStatistics:
    statistics = InputStatistics(name, inputs[0].shape[-1], with_drift=full_inputs is not None)
    for n, batch in enumerate(batches):
        beside = None if full_inputs is None else full_inputs[n].flatten(0, 1)
        gap = None if residual_gaps is None else next(residual_gaps).flatten(0, 1)
        statistics.add(inputs[n].flatten(0, 1), batch.weights.flatten(), beside, gap)
    return statistics


def weight_of(layer: Layer, linear: str) -> Tensor:
    weight: Tensor = getattr(layer, linear).weight.data
    return weight
