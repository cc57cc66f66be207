"""The tensors of a bitsandbytes weight, by the documented layout; the library itself is asked in tests/interop."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from dlm_edge.quantized import CODEBOOKS, CodebookTensor


def plain_tensors(name: str, weight: CodebookTensor, **state: Any) -> dict[str, np.ndarray]:
    return _common(name, weight, state) | {name + ".absmax": weight.magnitudes}


def nested_tensors(name: str, weight: CodebookTensor, **state: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """With double quantization; also returns the magnitudes that come out of it."""
    table = np.linspace(-1, 1, 256, dtype=np.float32)
    n_blocks = len(weight.magnitudes)
    outer = np.random.default_rng(1).uniform(0.05, 0.2, -(-n_blocks // 256)).astype(np.float32)
    codes = np.random.default_rng(2).integers(0, 256, n_blocks, dtype=np.uint8)
    offset = np.float32(0.25)
    magnitudes = table[codes] * np.repeat(outer, 256)[:n_blocks] + offset
    nested = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(offset)}
    tensors = _common(name, weight, nested | state) | {
        name + ".absmax": codes,
        name + ".nested_absmax": outer,
        name + ".nested_quant_map": table,
    }
    return tensors, magnitudes


def _common(name: str, weight: CodebookTensor, state: dict[str, Any]) -> dict[str, np.ndarray]:
    content = {"quant_type": weight.format, "blocksize": 64, "dtype": "float16", "shape": list(weight.shape)} | state
    return {
        name: weight.packed.reshape(-1, 1),
        name + ".quant_map": CODEBOOKS[weight.format],
        f"{name}.quant_state.bitsandbytes__{weight.format}": np.frombuffer(json.dumps(content).encode(), np.uint8),
    }
