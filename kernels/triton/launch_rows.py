"""DequantizeRows and RematerialiseRows on PyTorch tensors, as launch.py has the operators of attention.

kernels/csrc/cuda_dequantize_rows.cpp makes the same launches from compiled files.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_edge.kernels.triton import tiles
from dlm_edge.kernels.triton.dequantize_rows import dequantize_rows as dequantize_rows_kernel
from dlm_edge.kernels.triton.dequantize_rows import rematerialise_rows as rematerialise_rows_kernel


def dequantize_rows(
    codes: Tensor,
    scale: Tensor,
    low: Tensor,
    tail: Tensor,
    rows: Tensor,
    cache_len: int,
    *,
    bits: int,
    axis: str,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """As kernels/dequantize_rows/reference.py, rounded to `dtype`; rows outside [0, cache_len) are zeros here."""
    width = codes.shape[1] * 8 // bits
    values = torch.empty((len(rows), width), dtype=dtype, device=codes.device)
    if values.numel():
        dequantize_rows_kernel[len(rows), -(-width // tiles.ROW_PART)](
            codes, scale, low, tail, rows, values, width, _group(codes, scale, width, axis), len(tail), cache_len,
            BITS=bits, CHANNEL=axis == "channel", BLOCK=tiles.ROW_PART, num_warps=4,
        )  # fmt: skip
    return values


def rematerialise_rows(
    codes: Tensor,
    scale: Tensor,
    low: Tensor,
    tail: Tensor,
    rows: Tensor,
    cache_len: int,
    weight: Tensor,
    *,
    bits: int,
    axis: str,
) -> Tensor:
    """As kernels/rematerialise_rows/reference.py; rows outside [0, cache_len) are zeros here."""
    (n_in, n_out), n = weight.shape, len(rows)
    product = torch.empty((n, n_out), dtype=weight.dtype, device=codes.device)
    if product.numel():
        block_m = tiles.row_block(n)
        rematerialise_rows_kernel[-(-n // block_m), -(-n_out // tiles.PRODUCT_COLUMNS)](
            codes, scale, low, tail, rows, weight, product, n, n_in, n_out, _group(codes, scale, n_in, axis),
            len(tail), cache_len, BITS=bits, CHANNEL=axis == "channel", BLOCK_M=block_m, BLOCK_N=tiles.PRODUCT_COLUMNS,
            BLOCK_K=tiles.PRODUCT_DEPTH, num_warps=4,
        )  # fmt: skip
    return product


def _group(codes: Tensor, scale: Tensor, width: int, axis: str) -> int:
    return codes.shape[0] // scale.shape[0] if axis == "channel" else width // scale.shape[1]
