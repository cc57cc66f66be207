"""The table of methods, and one linear layer quantized by any of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlm_edge.errors import JobError, UsageProblem
from dlm_edge.quant import gptq, rtn
from dlm_edge.quant.gptq import GptqConfig
from dlm_edge.quant.hessian import Hessian, output_error
from dlm_edge.quant.rtn import RtnConfig
from dlm_edge.quantized import LayerRecord, QuantizedTensor, dequantize


@dataclass(frozen=True, slots=True)
class Method:
    """`quantize(name, weight, config, hessian)` gives a tensor, or None when this weight needs the fallback, and notes."""

    config: Callable[..., Any]
    quantize: Callable[[str, NDArray[np.float32], Any, Tensor | None], tuple[QuantizedTensor | None, list[str]]]
    needs_states: bool


def _rtn(
    name: str, weight: NDArray[np.float32], config: RtnConfig, hessian: Tensor | None
) -> tuple[QuantizedTensor | None, list[str]]:
    return rtn.quantize(name, weight, config), []


def _gptq(
    name: str, weight: NDArray[np.float32], config: GptqConfig, hessian: Tensor | None
) -> tuple[QuantizedTensor | None, list[str]]:
    assert hessian is not None
    result = gptq.quantize(name, weight, config, hessian)
    return result.tensor, result.notes


METHODS: dict[str, Method] = {
    "rtn": Method(RtnConfig, _rtn, needs_states=False),
    "gptq": Method(GptqConfig, _gptq, needs_states=True),
}


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    linear: str  # q, k, v, o, gate, up or down
    tensor: QuantizedTensor
    record: LayerRecord
    seconds: float
    fell_back: bool


def find_method(name: str) -> Method:
    if name not in METHODS:
        raise UsageProblem("E-USAGE", f"method {name!r} is not known", f"known: {', '.join(METHODS)}")
    return METHODS[name]


def quantize_linear(
    method: str, config: Any, linear: str, name: str, weight: Tensor, hessian: Hessian | None, *, strict: bool
) -> QuantizedLinear:
    """Quantize one weight [out, in]; when the method cannot, round to nearest and say so, or raise under `strict`."""
    started, values = time.perf_counter(), weight.numpy()
    mean = None if hessian is None else hessian.mean()
    tensor, notes = METHODS[method].quantize(name, values, config, mean)
    baseline = None
    if tensor is None or (mean is not None and method != "rtn"):
        baseline = rtn.quantize(name, values, RtnConfig(bits=config.bits, group_size=config.group_size))
    used = method
    if tensor is None:
        if strict:
            raise JobError("E-QUANT", f"{name}: {'; '.join(notes)}", "run without --strict to round it to nearest")
        assert baseline is not None
        tensor, used, notes = baseline, "rtn", [*notes, "rounded to nearest instead"]
    record = LayerRecord(
        name=name,
        bits=config.bits,
        group_size=config.group_size,
        method=used,
        error=_error(mean, weight, tensor),
        rtn_error=None if baseline is None else _error(mean, weight, baseline),
        notes=notes,
    )
    return QuantizedLinear(linear, tensor, record, time.perf_counter() - started, used != method)


def _error(mean: Tensor | None, weight: Tensor, tensor: QuantizedTensor) -> float | None:
    return None if mean is None else output_error(mean, weight, torch.from_numpy(dequantize(tensor)))
