"""The table of methods, and one linear layer quantized by any of them."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlm_edge.errors import JobError, UsageProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.models.transformer import Layer
from dlm_edge.quant import awq, codebook, decoupleq, gptaq, gptq, hqq, int8_outlier, rtn, smoothquant
from dlm_edge.quant.coverage import effective_rank
from dlm_edge.quant.gptq import rows_at_once
from dlm_edge.quant.rounded import Rounded
from dlm_edge.quant.rtn import RtnConfig
from dlm_edge.quant.states import Batch
from dlm_edge.quant.statistics import InputStatistics, output_errors
from dlm_edge.quant.treatments import Decision
from dlm_edge.quantized import LayerRecord, PackedWeight, QuantizedTensor, dequantize

# layer, spec, batches, hidden states before the layer, config -> decisions by linear ("q", ..., "down").
# Changes the layer in place and leaves its function as it was.
Prepare = Callable[[Layer, ModelSpec, list[Batch], list[Tensor], Any], dict[str, list[Decision]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """`config(bits=, group_size=, zero=, ...)` checks settings; `quantize(name, weight [out, in], config, inputs)`
    rounds one weight. `inputs` is None unless `needs_states`, and has a drift only with `needs_full`."""

    config: Callable[..., Any]
    quantize: Callable[[str, NDArray[np.float32], Any, Any], Rounded]
    needs_states: bool = True
    needs_full: bool = False
    prepare: Prepare | None = None
    int8_activations: bool = False
    allocates: bool = False  # bits differ from layer to layer under a budget
    tunable: bool = True  # uniform grids: scales, zeros and norms can be tuned afterwards
    form: dict[str, Any] = field(default_factory=dict)  # settings of a recipe that this method fixes


def _rtn(name: str, weight: NDArray[np.float32], config: RtnConfig, inputs: InputStatistics | None) -> Rounded:
    return Rounded(rtn.quantize(name, weight, config, inputs))


INT8: dict[str, Any] = {
    "config": int8_outlier.Int8Config,
    "int8_activations": True,
    "tunable": False,
    "form": {"bits": 8, "group_size": 0, "zero": "symmetric"},
}
CODEBOOK: dict[str, Any] = {
    "quantize": codebook.quantize,
    "needs_states": False,
    "tunable": False,
    "form": {"bits": 4, "group_size": 64, "zero": "symmetric"},
}
METHODS: dict[str, Method] = {
    "rtn": Method(config=RtnConfig, quantize=_rtn, needs_states=False),
    "hqq": Method(config=hqq.HqqConfig, quantize=hqq.quantize, needs_states=False),
    "gptq": Method(config=gptq.GptqConfig, quantize=gptq.quantize),
    "gptaq": Method(config=gptaq.GptaqConfig, quantize=gptaq.quantize, needs_full=True),
    "decoupleq": Method(config=decoupleq.DecoupleqConfig, quantize=decoupleq.quantize, needs_full=True),
    "awq": Method(config=awq.AwqConfig, quantize=awq.quantize, prepare=awq.prepare),
    "awq+gptq": Method(config=gptq.GptqConfig, quantize=gptq.quantize, prepare=awq.prepare_for_gptq),
    "mixed": Method(config=decoupleq.DecoupleqConfig, quantize=decoupleq.quantize, needs_full=True, allocates=True),
    "smoothquant": Method(quantize=smoothquant.quantize, prepare=smoothquant.prepare, **INT8),
    "int8-outlier": Method(quantize=int8_outlier.quantize, **INT8),
    "w8a8": Method(quantize=int8_outlier.quantize, prepare=smoothquant.prepare_for_split, **INT8),
    "nf4": Method(config=partial(codebook.CodebookConfig, format="nf4"), **CODEBOOK),
    "fp4": Method(config=partial(codebook.CodebookConfig, format="fp4"), **CODEBOOK),
}


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    linear: str  # q, k, v, o, gate, up or down
    tensor: PackedWeight
    record: LayerRecord
    seconds: float
    fell_back: bool
    treatment: Decision | None = None  # of the rounding itself


def find_method(name: str) -> Method:
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(METHODS)}"
        raise UsageProblem("E-USAGE", f"method {name!r} is not known", hint)
    return METHODS[name]


def quantize_linear(
    method: str, config: Any, linear: str, name: str, weight: Tensor, inputs: InputStatistics | None, *, strict: bool
) -> QuantizedLinear:
    """Quantize one weight [out, in]; when the method cannot, round to nearest and say so, or raise under `strict`."""
    started, values = time.perf_counter(), weight.numpy()
    rounded = METHODS[method].quantize(name, values, config, inputs)
    notes, tensor, used = list(rounded.notes), rounded.tensor, method
    baseline = None
    if tensor is None or (inputs is not None and method != "rtn"):
        baseline = nearest(name, values, config, METHODS[method])
    if tensor is None:
        if strict:
            raise JobError("E-QUANT", f"{name}: {'; '.join(notes)}", "run without --strict to round it to nearest")
        assert baseline is not None
        tensor, used, notes = baseline, "rtn", [*notes, "rounded to nearest instead"]
    record = record_of(name, used, tensor, METHODS[method])
    if inputs is not None:
        compared = [tensor] if baseline is None else [tensor, baseline]
        errors = output_errors(inputs.second_moment, weight, [torch.from_numpy(dequantize(t)) for t in compared])
        record.error, record.tokens = errors[0], inputs.tokens
        record.rtn_error = None if baseline is None else errors[1]
        record.effective_rank = round(effective_rank(inputs.second_moment), 1)
    record.damping, record.notes = rounded.damping, notes
    return QuantizedLinear(linear, tensor, record, time.perf_counter() - started, used != method, rounded.treatment)


def nearest(name: str, values: NDArray[np.float32], config: Any, method: Method) -> QuantizedTensor:
    """What rounding to nearest makes of it in the same form: the fallback, and what every error is shown beside."""
    if method.int8_activations:
        return int8_outlier.per_row(torch.from_numpy(values))
    rows = rows_at_once(values.shape[1])
    pieces = (values[first : first + rows] for first in range(0, len(values), rows))
    form = RtnConfig(bits=config.bits, group_size=config.group_size, zero=config.zero)
    return nearest_of_pieces(name, pieces, len(values), form)


def nearest_of_pieces(
    name: str, pieces: Iterable[NDArray[np.float32]], n_rows: int, config: RtnConfig
) -> QuantizedTensor:
    """Consecutive rows of one weight [n_rows, in] rounded to nearest. A search makes many copies of what it works on:
    of pieces that fit into the processor's cache it takes a seventh of the time, and next to no memory."""
    joined: QuantizedTensor | None = None
    first = 0
    for piece in pieces:
        part = rtn.quantize(name, piece, config)
        if joined is None:
            zeros = None if part.zeros is None else np.empty((n_rows, *part.zeros.shape[1:]), part.zeros.dtype)
            packed = np.empty((n_rows, *part.packed.shape[1:]), np.uint8)
            scales = np.empty((n_rows, *part.scales.shape[1:]), np.float32)
            joined = QuantizedTensor(packed, scales, config.bits, zeros)
        here = slice(first, first + len(piece))
        joined.packed[here], joined.scales[here] = part.packed, part.scales
        if joined.zeros is not None and part.zeros is not None:
            np.copyto(joined.zeros[here], part.zeros)
        first += len(piece)
    assert joined is not None and first == n_rows
    return joined


def record_of(name: str, used: str, tensor: PackedWeight, method: Method) -> LayerRecord:
    if not isinstance(tensor, QuantizedTensor):
        return LayerRecord(name=name, bits=4, group_size=64, method=used, format=tensor.format)
    return LayerRecord(
        name=name,
        bits=tensor.bits,
        group_size=tensor.group_size,
        method=used,
        zero=tensor.zero_kind,
        activations="int8" if method.int8_activations else "float",
        outlier_columns=0 if tensor.outliers is None else len(tensor.outliers.columns),
        reordered=tensor.order is not None,
    )
