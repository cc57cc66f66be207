"""Quantize the linears of one layer, each on inputs that have passed everything quantized before it."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dlm_edge.families.spec import ModelSpec
from dlm_edge.models.transformer import Layer
from dlm_edge.quant.block_rounding import judge, rounding_error
from dlm_edge.quant.layer_pass import ADDING, LINEARS, Inputs, Stage, advance, run_stages
from dlm_edge.quant.methods import QuantizedLinear, find_method, quantize_linear
from dlm_edge.quant.recipes import Recipe
from dlm_edge.quant.states import Batch
from dlm_edge.quant.statistics import InputStatistics
from dlm_edge.quant.treatments import Decision, settled
from dlm_edge.quant.tuning import TuningConfig, tune_layer
from dlm_edge.quantized import PackedWeight, QuantizedTensor, dequantize

SAMPLED_TOKENS = 256  # that the rounding of activations is judged on


@dataclass(frozen=True, slots=True)
class LayerJob:
    """One layer to be quantized. `names` maps its linears to tensor names, `bits` to their bits; `seen` is shown the
    statistics of every group of linears before they are used; `decided`: what the job as a whole did about outliers."""

    spec: ModelSpec
    names: Mapping[str, str]
    bits: Mapping[str, float]
    recipe: Recipe
    strict: bool
    seen: Callable[[list[str], InputStatistics], None] = lambda linears, inputs: None
    decided: Mapping[str, list[Decision]] = field(default_factory=dict)


def quantize_without_states(layer: Layer, job: LayerJob) -> list[QuantizedLinear]:
    """Every weight by itself; those of `layer` stay as they are."""
    done = [round_one(job, linear, weight_of(layer, linear), None) for linear in LINEARS if linear in job.names]
    tell_treatments(job, done, {})
    return done


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

    `full` are the layer's inputs in the full-precision model, for methods and tunings that compare with it; they
    advance too where the method `needs_full`, and stay where only a tuning reads them.
    """
    method, recipe = find_method(job.recipe.method), job.recipe
    prepared: dict[str, list[Decision]] = {}
    if method.prepare is not None and job.names:
        config = recipe.config(job.spec.hidden_size, min(job.bits.values()))
        prepared = method.prepare(layer, job.spec, batches, hidden, config)
    original = copy.deepcopy(layer) if method.needs_full or recipe.tuning is not None else None
    before, before_full = (list(hidden), list(full or [])) if recipe.tuning is not None else ([], [])
    beside = None
    if method.needs_full:
        assert original is not None and full is not None
        assert method.prepare is None  # `full` passes the source's weights as they are: a resumed job repeats its bits
        beside = run_stages(original, job.spec, batches, full, zero_nonfinite=zero_nonfinite)
    if recipe.tuning is None:
        original = None  # `beside` holds it as long as it is of use
    done = round_stages(layer, beside, job, batches, hidden, full, zero_nonfinite)
    tell_treatments(job, done, prepared)
    if recipe.tuning is None:
        return done
    assert original is not None
    hidden[:] = before
    tuned = tune(layer, original, job, batches, before, before_full, done)
    advance(layer, job.spec, batches, hidden, zero_nonfinite=zero_nonfinite)
    return tuned


def tell_treatments(job: LayerJob, done: list[QuantizedLinear], prepared: Mapping[str, list[Decision]]) -> None:
    """Every record names what was done about outliers, in the order in which it was, or why nothing was."""
    for result in done:
        own = [] if result.treatment is None else [result.treatment]
        before = [*job.decided.get(result.linear, []), *prepared.get(result.linear, [])]
        result.record.treatment = settled([*before, *own])


def round_stages(
    layer: Layer,
    beside: Generator[Stage] | None,
    job: LayerJob,
    batches: list[Batch],
    hidden: list[Tensor],
    full: list[Tensor] | None,
    zero_nonfinite: bool,
) -> list[QuantizedLinear]:
    """The stages of the layer in forward order; `beside` are those of the original on its stream `full`, and end too."""
    done = list[QuantizedLinear]()
    for linears, inputs in run_stages(layer, job.spec, batches, hidden, zero_nonfinite=zero_nonfinite):
        full_inputs = next(beside)[1] if beside else None
        wanted, statistics = [linear for linear in linears if linear in job.names], None
        if wanted:
            gaps = None
            if linears in ADDING and full is not None and full_inputs is not None:
                gaps = (f - h for f, h in zip(full, hidden, strict=True))
            for each in (inputs, full_inputs) if linears == ("o",) else ():
                if each is not None:
                    each.hold()  # read again by the pass; these are no wider than the hidden states
            width = weight_of(layer, wanted[0]).shape[1]
            statistics = collect(job.names[wanted[0]], width, batches, inputs, full_inputs, gaps)
        if linears == ("down",) and beside:
            full_inputs = None
            deque(beside, 0)  # to the end: the original has to go before the largest second moment is factored
        if statistics is None:
            continue
        job.seen(wanted, statistics)
        for linear in wanted:
            weight = weight_of(layer, linear)
            result = round_one(job, linear, weight, statistics)
            result = kept_from_rounding(result, statistics)
            if inputs.zeroed:
                result.record.notes.append(f"{inputs.zeroed} NaN or infinite input values counted as zero")
            weight.copy_(torch.from_numpy(dequantize(result.tensor)))
            done.append(result)
    return done


def round_one(job: LayerJob, linear: str, weight: Tensor, inputs: InputStatistics | None) -> QuantizedLinear:
    config = job.recipe.config(weight.shape[1], job.bits[linear])
    return quantize_linear(job.recipe.method, config, linear, job.names[linear], weight, inputs, strict=job.strict)


def kept_from_rounding(result: QuantizedLinear, inputs: InputStatistics) -> QuantizedLinear:
    """Measure what activations in int8 blocks would cost, and forbid them in the record where that is too much."""
    if not isinstance(result.tensor, QuantizedTensor) or result.record.activations != "float":
        return result
    decision = judge(result.record, rounding_error(*inputs.sample, result.tensor))
    if decision.treatment == "float":
        result.record.activations = "exact"
    return replace(result, treatment=decision)


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
    width: int,
    batches: list[Batch],
    inputs: Inputs,
    full_inputs: Inputs | None = None,
    residual_gaps: Iterator[Tensor] | None = None,
) -> InputStatistics:
    """Of `inputs` [rows, seq, width] for each batch, one batch at a time."""
    statistics = InputStatistics(name, width, with_drift=full_inputs is not None)
    for n, batch in enumerate(batches):
        beside = None if full_inputs is None else full_inputs[n].flatten(0, 1)
        gap = None if residual_gaps is None else next(residual_gaps).flatten(0, 1)
        x, weights = inputs[n].flatten(0, 1), batch.weights.flatten()
        statistics.add(x, weights, beside, gap)
        statistics.keep_some(x, weights, max(1, SAMPLED_TOKENS // len(batches)))
        del x  # before the next are made: they are the widest of all
    return statistics


def weight_of(layer: Layer, linear: str) -> Tensor:
    weight: Tensor = getattr(layer, linear).weight.data
    return weight
