"""NF4 and FP4 as bitsandbytes makes them (QLoRA, arXiv 2305.14314): 16 fixed values, one magnitude for 64 weights."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dlm_edge.errors import EnvironmentProblem, UsageProblem
from dlm_edge.quant.rounded import Rounded
from dlm_edge.quant.statistics import InputStatistics
from dlm_edge.quantized import CODEBOOK_BLOCK, CodebookTensor, dequantize

__all__ = ["CodebookConfig", "dequantize", "quantize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookConfig:
    """The form leaves no choice but the table; magnitudes are float32, without double quantization."""

    format: Literal["nf4", "fp4"] = "nf4"
    bits: int = 4
    group_size: int = CODEBOOK_BLOCK
    zero: str = "symmetric"

    def __post_init__(self) -> None:
        if (self.bits, self.group_size, self.zero) != (4, CODEBOOK_BLOCK, "symmetric"):
            message = (
                f"{self.format} has 4 bits in groups of {CODEBOOK_BLOCK} and no zero, got {self.bits} bits in groups of"
            )
            message += f" {self.group_size} with {self.zero} zeros"
            raise UsageProblem("E-QUANT", message, "leave --bits, --group-size and --zero out")


def quantize(
    name: str, weight: NDArray[np.float32], config: CodebookConfig, inputs: InputStatistics | None = None
) -> Rounded:
    """Quantize `weight` [out_features, in_features]; `inputs` are not used.

    Raises E-QUANT when in_features is not a multiple of 64, E-DEPENDENCY without bitsandbytes.
    """
    if weight.shape[1] % CODEBOOK_BLOCK:
        message = (
            f"{name}: in_features {weight.shape[1]} is not a multiple of {CODEBOOK_BLOCK}, the block of {config.format}"
        )
        raise UsageProblem("E-QUANT", message, f"keep this layer in float with --skip '{name}'")
    contiguous = torch.from_numpy(np.ascontiguousarray(weight))
    packed, state = bitsandbytes_functional().quantize_4bit(
        contiguous, blocksize=CODEBOOK_BLOCK, quant_type=config.format, compress_statistics=False
    )
    shape = (weight.shape[0], weight.shape[1])
    return Rounded(CodebookTensor(packed.numpy().reshape(-1), state.absmax.numpy(), shape, config.format))


def bitsandbytes_functional() -> Any:
    try:
        return importlib.import_module("bitsandbytes.functional")
    except ImportError as error:
        message = f"nf4 and fp4 are made by bitsandbytes, which cannot be imported ({error})"
        raise EnvironmentProblem("E-DEPENDENCY", message, "pip install bitsandbytes") from error
