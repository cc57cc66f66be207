"""Whether a layer bears activations that are rounded to int8 in blocks, as the fast kernels for packed weights do it.

Such a kernel (accuracy level 4 of ONNX Runtime's MatMulNBits) gives every token one scale for each group of the weight,
max|x| / 127 over the group. An outlier then takes the steps from its whole group. What that costs is measured on
calibration states, with the weight as it was rounded, and compared with what the rounding of the weight has cost.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dlm_edge.quant.treatments import Decision
from dlm_edge.quantized import LayerRecord, QuantizedTensor, dequantize

JUDGED_ROWS = 512  # output channels, evenly spread; all where there are fewer
# More than this much of the output, and than this share of the weight's own error, is kept away. On the reference models
# the rounding adds 1e-5 to 1.3e-4, a twentieth of the weight's error or less; with outliers of scale 100, 1e-3 to 6e-2.
HARMLESS = 5e-4
SHARE = 0.1


def rounding_error(x: Tensor, token_weights: Tensor, tensor: QuantizedTensor) -> float:
    """||(x' - x) W^T||^2 / ||x W^T||^2 over tokens x [tokens, in] with their weights [tokens], x' in int8 blocks."""
    weight = torch.from_numpy(dequantize(some_rows(tensor)))
    rest, whole = x, x @ weight.T
    if tensor.outliers is not None:  # these columns bypass the kernel
        rest = x.index_fill(1, torch.from_numpy(tensor.outliers.columns), 0)
    order = torch.arange(x.shape[1]) if tensor.order is None else torch.from_numpy(tensor.order)
    lost = (in_blocks(rest[:, order], tensor.group_size) - rest[:, order]) @ weight[:, order].T
    norm = float((whole.square().sum(1) * token_weights).double().sum())
    return float((lost.square().sum(1) * token_weights).double().sum()) / norm if norm > 0 else 0.0


def some_rows(tensor: QuantizedTensor) -> QuantizedTensor:
    """At most about `JUDGED_ROWS` of its output channels."""
    every = slice(None, None, max(1, tensor.shape[0] // JUDGED_ROWS))
    zeros = None if tensor.zeros is None else tensor.zeros[every]
    outliers = tensor.outliers and replace(tensor.outliers, weights=tensor.outliers.weights[every])
    return replace(tensor, packed=tensor.packed[every], scales=tensor.scales[every], zeros=zeros, outliers=outliers)


def in_blocks(x: Tensor, size: int) -> Tensor:
    """x [tokens, in] rounded to int8, one scale for every `size` values of a token."""
    blocks = x.reshape(len(x), -1, size)
    scales = blocks.abs().amax(-1, keepdim=True) / 127
    scales = torch.where(scales == 0, 1.0, scales)
    return ((blocks / scales).round() * scales).reshape(x.shape)


def judge(record: LayerRecord, error: float) -> Decision:
    """What to do about activations whose rounding in blocks adds `error` to that of the weight."""
    own = record.error or 0.0
    why = f"activations in int8 blocks of {record.group_size} would add {error:.1e} to an output error of {own:.1e}"
    return Decision("float" if error > max(HARMLESS, SHARE * own) else "none", why)
