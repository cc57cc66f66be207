"""Tune one quantized layer as a whole: scales, float zeros and norm gains move until the layer's output is as near as
it gets to that of the full-precision model; codes stay.

The second stage of decoupleQ (arXiv 2404.12759, section 3.4), with Adam; EfficientQAT (arXiv 2407.11062) does the same
before its end-to-end stage. The target is the output of the full-precision layer on the full-precision stream, so that
a layer also makes up for what those before it have lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.models.transformer import Layer, RMSNorm, rope_tables
from dlm_edge.quant.grid import LARGEST_HALF_SCALE, SMALLEST_HALF_SCALE, round_zeros
from dlm_edge.quant.states import Batch
from dlm_edge.quantized import QuantizedTensor, dequantize, middle_code, unpack


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningConfig:
    """`steps` of Adam, each on about `step_tokens` tokens, the same in every run. The learning rate falls linearly to
    0; it is relative for scales and gains, and in units of `zero_rate` codes for zeros."""

    steps: int = 32
    step_tokens: int = 2048
    learning_rate: float = 2e-3
    zero_rate: float = 4.0
    scales: bool = True
    zeros: bool = True
    norms: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.step_tokens < 1 or self.learning_rate <= 0:
            raise UsageProblem(
                "E-QUANT", "tuning needs steps, tokens and a learning rate above 0", "leave it out instead"
            )


@dataclass(frozen=True, slots=True)
class TunedLayer:
    """Losses are the weighted mean square of the output's error over that of the full-precision output, on all states
    that were tuned on; `loss_after` is never above `loss_before`."""

    tensors: dict[str, QuantizedTensor]
    loss_before: float
    loss_after: float
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Example:
    """Some rows of a batch: inputs and wanted outputs [rows, seq, hidden], weights [rows, seq]."""

    batch: Batch
    inputs: Tensor
    wanted: Tensor
    weights: Tensor


def tune_layer(
    layer: Layer,
    full_layer: Layer,
    tensors: dict[str, QuantizedTensor],
    spec: ModelSpec,
    batches: list[Batch],
    hidden: list[Tensor],
    hidden_full: list[Tensor],
    config: TuningConfig,
) -> TunedLayer:
    """`tensors` by linear ("q", ..., "down"), tuned; the weights and norm gains of `layer` follow in place.

    `hidden` and `hidden_full` are the inputs of the layer in the quantized and the full-precision stream. What comes
    back is what came in when tuning does not lower the loss. May be called in inference mode, but `batches` must not
    have been made in it: autograd keeps their attention masks.
    """
    with torch.inference_mode(False), torch.enable_grad():
        examples = choose_examples(full_layer, spec, batches, hidden, hidden_full, config)
        knobs = [Knobs(linear, tensor, config) for linear, tensor in tensors.items()]
        gains = {n: Gain(m.weight) for n, m in layer.named_modules() if isinstance(m, RMSNorm) and config.norms}
        before = total_loss(layer, {}, spec, examples)
        descend(layer, spec, examples, knobs, gains, config)
        tuned = {k.linear: k.encoded() for k in knobs}
        with torch.no_grad():
            changed = {f"{n}.weight": torch.from_numpy(dequantize(t)) for n, t in tuned.items()}
            changed |= {f"{n}.weight": g.value().half().float() for n, g in gains.items()}
        after = total_loss(layer, changed, spec, examples)
    if not after < before:
        return TunedLayer(tensors, before, before, ["tuning did not lower the error of the layer: left as it was"])
    own = dict(layer.named_parameters())
    for name, value in changed.items():
        own[name].data.copy_(value)
    return TunedLayer(tuned, before, after)


@torch.no_grad()
def choose_examples(
    full_layer: Layer,
    spec: ModelSpec,
    batches: list[Batch],
    hidden: list[Tensor],
    hidden_full: list[Tensor],
    config: TuningConfig,
) -> list[Example]:
    """At most one for each step, spread evenly over the batches."""
    places = []
    for n, batch in enumerate(batches):
        rows, length = batch.ids.shape
        at_once = max(1, config.step_tokens // length)
        places += [(n, slice(i, i + at_once)) for i in range(0, rows, at_once)]
    if len(places) > config.steps:
        places = [places[i * len(places) // config.steps] for i in range(config.steps)]
    examples = []
    for n, part in places:
        batch = batches[n]
        cos, sin = rope_tables(batch.positions, spec.head_dim, spec.rope_theta)
        wanted = full_layer(hidden_full[n][part], cos, sin, batch.attend)
        examples.append(Example(batch, hidden[n][part].clone(), wanted, batch.weights[part].clone()))
    return examples


def descend(
    layer: Layer,
    spec: ModelSpec,
    examples: list[Example],
    knobs: list[Knobs],
    gains: dict[str, Gain],
    config: TuningConfig,
) -> None:
    rate, scale = config.learning_rate, 1 / mean_square(examples)
    offsets = [k.scale_change for k in knobs if config.scales] + [g.change for g in gains.values()]
    zeros = [k.zero_change for k in knobs if k.zero_change is not None]
    groups = [{"params": offsets, "lr": rate}, {"params": zeros, "lr": rate * config.zero_rate}]
    optimizer = torch.optim.Adam([g for g in groups if g["params"]], betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / config.steps)
    tuned = {f"{k.linear}.weight" for k in knobs} | {f"{n}.weight" for n in gains}
    kept = {n: p.detach().clone() for n, p in layer.named_parameters() if n not in tuned}
    for example in order_of_steps(examples, config.steps):
        optimizer.zero_grad(set_to_none=True)
        changed = kept | {f"{k.linear}.weight": k.weight() for k in knobs}
        changed |= {f"{n}.weight": g.value() for n, g in gains.items()}
        (loss(layer, changed, spec, example) * scale).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def order_of_steps(examples: list[Example], steps: int) -> Iterator[Example]:
    """All examples in a fixed random order, then in another one."""
    generator, done = torch.Generator().manual_seed(0), 0
    while done < steps:
        for i in torch.randperm(len(examples), generator=generator).tolist()[: steps - done]:
            yield examples[i]
            done += 1


def loss(layer: Layer, changed: dict[str, Tensor], spec: ModelSpec, example: Example) -> Tensor:
    """Weighted mean square error of the output with `changed` parameters in place of the layer's own."""
    cos, sin = rope_tables(example.batch.positions, spec.head_dim, spec.rope_theta)
    out = torch.func.functional_call(layer, changed, (example.inputs, cos, sin, example.batch.attend))
    weights: Tensor = example.weights
    result: Tensor = ((out - example.wanted).square().mean(-1) * weights).sum() / weights.sum()
    return result


@torch.no_grad()
def total_loss(layer: Layer, changed: dict[str, Tensor], spec: ModelSpec, examples: list[Example]) -> float:
    lost = sum(float(loss(layer, changed, spec, e)) * float(e.weights.sum()) for e in examples)
    return lost / sum(float(e.weights.sum()) for e in examples) / mean_square(examples)


@torch.no_grad()
def mean_square(examples: list[Example]) -> float:
    whole = sum(float((e.wanted.square().mean(-1) * e.weights).sum()) for e in examples)
    return whole / sum(float(e.weights.sum()) for e in examples)


class Gain:
    def __init__(self, weight: Tensor) -> None:
        self.start = weight.detach().float().clone()
        self.change = torch.zeros_like(self.start, requires_grad=True)

    def value(self) -> Tensor:
        return self.start * (1 + self.change)


class Knobs:
    """What can be tuned of one quantized tensor, relative to its present state."""

    def __init__(self, linear: str, tensor: QuantizedTensor, config: TuningConfig) -> None:
        self.linear, self.tensor = linear, tensor
        rows, groups = tensor.scales.shape
        self.codes = torch.from_numpy(unpack(tensor)).view(rows, groups, -1).float()
        if tensor.zeros is None:
            self.codes -= middle_code(tensor.bits)
        else:
            self.codes -= torch.from_numpy(tensor.zeros).float()[..., None]
        self.scales = torch.from_numpy(tensor.scales)
        self.scale_change = torch.zeros(rows, groups, requires_grad=config.scales)
        free = tensor.zero_kind == "float" and config.zeros
        self.zero_change = torch.zeros(rows, groups, requires_grad=True) if free else None

    def weight(self) -> Tensor:
        """[out, in]"""
        codes = self.codes if self.zero_change is None else self.codes - self.zero_change[..., None]
        packed = (codes * (self.scales * (1 + self.scale_change))[..., None]).flatten(1)
        if self.tensor.order is not None:
            packed = packed[:, torch.from_numpy(self.tensor.order).argsort()]
        if self.tensor.outliers is not None:
            columns = torch.from_numpy(self.tensor.outliers.columns)
            packed = packed.index_add(1, columns, torch.from_numpy(self.tensor.outliers.weights))
        return packed

    @torch.no_grad()
    def encoded(self) -> QuantizedTensor:
        scales = nearest_half(self.scales * (1 + self.scale_change))
        zeros = self.tensor.zeros
        if self.zero_change is not None and zeros is not None:
            zeros = round_zeros(torch.from_numpy(zeros) + self.zero_change).numpy().astype(np.float32)
        return replace(self.tensor, scales=scales.numpy().astype(np.float32), zeros=zeros)


def nearest_half(values: Tensor) -> Tensor:
    """float16 values, unless float16 is too coarse or too short for one of them (as in grid.py)."""
    magnitude = values.abs()
    small = (magnitude < SMALLEST_HALF_SCALE) & (magnitude > 0)
    return values if small.any() or magnitude.max() > LARGEST_HALF_SCALE else values.half().float()
