"""Integer codes with a scale per group, as MatMulNBits nodes: which kernel runs a tensor best, and its inputs.

Times on an AVX-512 core, onnxruntime 1.31, 1024 x 1024 in groups of 64, 32 rows, in ms (float MatMul 0.65):

    bits, zero            level 0   level 4 (int8 activations)
    4 symmetric, integer     0.80      0.49
    4 float                  2.46      2.46  every call dequantizes the whole weight: 1.7 for a single row
      with group sums        0.82      0.50
    2 symmetric, integer     2.73      0.52
      zeros given as float   0.95
    2 float                  0.95      0.95
      with group sums        2.64      0.54
    8 symmetric, integer     2.49      0.41

Group sums: x (q - z) s = x (q - middle) s + sum(x over the group) (middle - z) s, exact in real numbers. The first
term is the kernel of a symmetric zero, the second a product that is group_size times smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.export.nodes import MICROSOFT, GraphBuilder
from dlm_edge.export.profiles import Precision
from dlm_edge.quantized import QuantizedTensor, container_bits, middle_code, pack_codes

LARGEST_BLOCK = 256
CUT_BLOCK = 128  # of groups that the kernel does not take; its fastest block
INT8_BLOCKS_OF_2_BITS = (32, 64, 128)  # others run as level 0, whatever is asked for


@dataclass(frozen=True, slots=True)
class Form:
    """`zeros`: default (the container's middle), packed codes, float values, or sums (see above)."""

    accuracy_level: int
    zeros: str
    block: int


def choose_form(tensor: QuantizedTensor, precision: Precision, role: str, *, keep: bool) -> Form:
    """The fastest of the forms that keep activations as `precision` wants them.

    `keep`: these must not be rounded, because they lie on a grid of their own already, which level 4 would round again,
    or because of outliers that quantizing has measured. The input of `down` carries the massive activations of
    diffusion models (arXiv 2508.14896), so it stays in float, except at 8 bits, which have no fast kernel for it.
    """
    block, zero = block_of(tensor) or tensor.group_size, tensor.zero_kind
    level = 4 if precision.int8_activations and not keep else 0
    if role.endswith("down.weight") and tensor.bits != 8:
        level = 0
    if tensor.bits == 2:
        if block not in INT8_BLOCKS_OF_2_BITS:
            level = 0
        if level == 0 and (zero == "float" or precision.body == np.float32):
            return Form(0, "float", block)
    zeros = {"symmetric": "default", "integer": "packed", "float": "sums"}[zero]
    return Form(level, zeros, block)


def block_of(tensor: QuantizedTensor) -> int | None:
    """The kernel takes powers of two from 16 up; other groups are cut into blocks of one scale, if they can be."""
    size = tensor.group_size
    divisor = size & -size
    if size == divisor and 16 <= size <= LARGEST_BLOCK and not (tensor.bits == 2 and size > CUT_BLOCK):
        return size
    return min(divisor, CUT_BLOCK) if divisor >= 16 else None


def stored_codes(tensor: QuantizedTensor) -> NDArray[np.uint8]:
    """Three-bit codes 0 ... 7 with the zero 4 become 4 ... 11, so that the container's default zero 8 is theirs."""
    return tensor.packed + np.uint8(0x44) if tensor.bits == 3 and tensor.zeros is None else tensor.packed


def n_bits(graph: GraphBuilder, x: str, role: str, tensor: QuantizedTensor, form: Form, name: str) -> str:
    """x [..., in], in the order of the packed columns, times the weight [out, in] without its outlier columns."""
    (rows, columns), width = tensor.shape, container_bits(tensor.bits)
    cut = tensor.group_size // form.block
    scales = tensor.scales.repeat(cut, 1)
    codes = tensor.packed if tensor.zeros is not None or form.zeros == "float" else stored_codes(tensor)
    inputs = [
        x,
        graph.weight(role + ".packed", codes.reshape(rows, columns // form.block, -1)),
        graph.weight(role + ".scales", scales.astype(graph.float_dtype)),
    ]
    if form.zeros == "packed":
        assert tensor.zeros is not None
        zeros: NDArray[Any] = pack_codes(tensor.zeros.astype(np.uint8).repeat(cut, 1), width)
        inputs.append(graph.weight(role + ".zeros", zeros))
    elif form.zeros == "float":
        inputs.append(graph.weight(role + ".zeros", float_zeros(tensor).repeat(cut, 1).astype(graph.float_dtype)))
    product = graph.add(
        "MatMulNBits", inputs, name, domain=MICROSOFT, K=columns, N=rows, bits=width,
        block_size=form.block, accuracy_level=form.accuracy_level,
    )  # fmt: skip
    if form.zeros != "sums":
        return product
    offsets = (middle_code(width) - float_zeros(tensor)) * tensor.scales
    return group_sums(
        graph, x, product, graph.weight(role + ".offsets", offsets.T.astype(graph.float_dtype)), tensor, name
    )


def group_sums(graph: GraphBuilder, x: str, product: str, offsets: str, tensor: QuantizedTensor, name: str) -> str:
    """The sums are a product with zeros and ones: ReduceSum does not stand an input without rows (no logits asked)."""
    groups, size = tensor.scales.shape[1], tensor.group_size
    members = np.repeat(np.eye(groups, dtype=graph.float_dtype), size, 0)  # [in, groups]
    sums = graph.add("MatMul", [x, graph.shared(f"groups_{groups}_of_{size}", members)], name + "_group_sums")
    correction = graph.add("MatMul", [sums, offsets], name + "_zero_product")
    return graph.add("Add", [product, correction], name + "_float_zero")


def float_zeros(tensor: QuantizedTensor) -> NDArray[np.float32]:
    if tensor.zeros is None:
        return np.full(tensor.scales.shape, middle_code(tensor.bits), np.float32)
    return tensor.zeros.astype(np.float32)
