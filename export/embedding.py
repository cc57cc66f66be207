"""The two ends of the model: the embedding, and the head, which shares its bytes where they are tied.

A packed embedding whose head runs as QLinear is gathered from the head's tiles (kernels/qlinear/layout.py), so that it is
stored once.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from dlm_edge.export.linear import WeightNodes, kernel_of
from dlm_edge.export.n_bits import stored_codes
from dlm_edge.export.nodes import MICROSOFT, GraphBuilder
from dlm_edge.export.q_linear import inputs_of
from dlm_edge.kernels.qlinear.layout import COLUMNS
from dlm_edge.quantized import (
    CODEBOOK_BLOCK,
    CodebookTensor,
    PackedWeight,
    QuantizedTensor,
    container_bits,
    middle_code,
    pack_codes,
)


def embedding(weights: WeightNodes, ids: str) -> str:
    """Rows [B, W, hidden] of int64 ids [B, W]."""
    packed, record = weights.checkpoint.load_packed("embed.weight"), weights.checkpoint.layer_record("embed.weight")
    if packed is None or weights.precision.kernel == "float":
        return weights.graph.add("Gather", [weights.plain("embed.weight"), ids], "embed")
    if not can_gather(packed):
        weights.notice("embedding runs in float: no kernel for its form")
        return weights.graph.add("Gather", [weights.plain("embed.weight"), ids], "embed")
    assert isinstance(packed, QuantizedTensor) and record is not None
    is_shared = (
        weights.checkpoint.spec.tied_head
        and kernel_of(weights.precision.kernel, "head.weight", packed, record) == "qlinear"
    )
    return from_tiles(weights.graph, packed, ids) if is_shared else from_blocks(weights, packed, ids)


def can_gather(packed: PackedWeight) -> bool:
    """Whether GatherBlockQuantized reads this form; its blocks are powers of two from 16 up."""
    if isinstance(packed, CodebookTensor) or packed.zero_kind == "float":
        return False
    size = packed.group_size
    return packed.order is None and packed.outliers is None and size >= 16 and size & (size - 1) == 0


def from_blocks(weights: WeightNodes, packed: QuantizedTensor, ids: str) -> str:
    g, width = weights.graph, container_bits(packed.bits)
    inputs = [
        g.weight("embed.weight.codes", stored_codes(packed).reshape(packed.shape[0], -1)),
        ids,
        g.weight("embed.weight.scales", packed.scales.astype(g.float_dtype)),
    ]
    if packed.zeros is not None:
        inputs.append(g.weight("embed.weight.zeros", pack_codes(packed.zeros.astype(np.uint8), width)))
    return g.add(
        "GatherBlockQuantized", inputs, "embed", domain=MICROSOFT, bits=width,
        block_size=packed.group_size, gather_axis=0, quantize_axis=1,
    )  # fmt: skip


def from_tiles(graph: GraphBuilder, packed: QuantizedTensor, ids: str) -> str:
    """The same from the operator's layout: every field of an output lies 16 fields after the one before it."""
    (_, columns), groups, bits = packed.shape, packed.scales.shape[1], container_bits(packed.bits)
    weight = inputs_of(packed)
    sixteen = graph.index(COLUMNS)
    tile = graph.add("Div", [ids, sixteen], "embed_tile")
    lane = graph.add("Sub", [ids, graph.add("Mul", [tile, sixteen], "embed_tile_start")], "embed_lane")
    at = [graph.add("Unsqueeze", [each, graph.integers(-1)], f"{each}_column") for each in (tile, lane)]

    def rows_of(array: NDArray[np.generic], name: str) -> str:
        """[B, W, n, ...] of tiles [tiles, n, 16, ...]."""
        count = array.shape[1]
        start = graph.add("Mul", [at[0], graph.index(count * COLUMNS)], f"embed_{name}_tile")
        steps = graph.shared(f"embed_{name}_steps", np.arange(count) * COLUMNS)
        index = graph.add(
            "Add", [graph.add("Add", [start, at[1]], f"embed_{name}_first"), steps], f"embed_{name}_index"
        )
        table = graph.weight(f"embed.weight.{name}", array.reshape(-1, *array.shape[3:]))
        return graph.add("Gather", [table, index], f"embed_{name}")

    codes = rows_of(weight.codes.reshape(*weight.codes.shape[:2], COLUMNS, 4), "codes")
    values = graph.add("Cast", [unpacked(graph, codes, bits)], "embed_values", to=TensorProto.FLOAT)
    values = graph.add("Reshape", [values, graph.integers(0, 0, -1)], "embed_flat")
    ends = [graph.integers(0), graph.integers(columns), graph.integers(-1)]
    values = graph.add("Slice", [values, *ends], "embed_cut")
    values = graph.add("Reshape", [values, graph.integers(0, 0, groups, -1)], "embed_groups")
    zero = graph.number(f"embed_middle_{bits}", middle_code(bits))
    if packed.zeros is not None:
        zero = graph.add("Cast", [rows_of(weight.zeros, "zeros")], "embed_zeros_float", to=TensorProto.FLOAT)
        zero = graph.add("Unsqueeze", [zero, graph.integers(-1)], "embed_zeros_column")
    scales = graph.add("Cast", [rows_of(weight.scales, "scales")], "embed_scales_float", to=TensorProto.FLOAT)
    scales = graph.add("Unsqueeze", [scales, graph.integers(-1)], "embed_scales_column")
    values = graph.add("Mul", [graph.add("Sub", [values, zero], "embed_shifted"), scales], "embed_scaled")
    return graph.add("Reshape", [values, graph.integers(0, 0, columns)], "embed")


def unpacked(graph: GraphBuilder, codes: str, bits: int) -> str:
    """[B, W, n, 8 / bits, 4] of bytes [B, W, n, 4]: the codes in a byte belong to k, k + 4, ..."""
    if bits == 8:
        return codes
    fields = []
    for shift in range(0, 8, bits):
        field = graph.add(
            "BitShift", [codes, graph.byte(f"shift_{shift}", shift)], f"embed_by_{shift}", direction="RIGHT"
        )
        field = graph.add("BitwiseAnd", [field, graph.byte(f"mask_{bits}", 2**bits - 1)], f"embed_field_{shift}")
        fields.append(graph.add("Unsqueeze", [field, graph.integers(3)], f"embed_field_{shift}_axis"))
    return graph.add("Concat", fields, "embed_fields", axis=3)


def head(weights: WeightNodes, x: str) -> str:
    """Logits [R, vocab_size] of rows x [R, hidden].

    A tied head shares the embedding's bytes, which the external data file stores once. Where the embedding has more rows
    than the vocabulary, those of a head that can be cut are not computed, and the logits of others are cut.
    """
    spec, graph, vocab_size = weights.checkpoint.spec, weights.graph, weights.checkpoint.spec.vocab_size
    role = "embed.weight" if spec.tied_head else "head.weight"
    packed, record = weights.checkpoint.load_packed(role), weights.checkpoint.layer_record(role)
    if packed is not None and record is not None:
        if record.activations == "int8" and weights.precision.kernel in ("blocks", "integer"):
            # ReduceMax does not stand an input without rows, and no logits may be asked for.
            weights.notice("head was made for int8 activations, which it keeps in float")
            record = msgspec.structs.replace(record, activations="float")
        if not spec.tied_head or kernel_of(weights.precision.kernel, "head.weight", packed, record) != "qlinear":
            packed = first_rows(packed, vocab_size)
        logits = weights.packed_linear(x, "head.weight", packed, record, "logits_body")
        return logits if packed.shape[0] == vocab_size else cut(graph, logits, vocab_size)
    if role == "head.weight" or weights.checkpoint.shape(role)[0] == vocab_size:
        table = graph.weight("head.weight", weights.load(role)[:vocab_size])
        return graph.add("Gemm", [x, table], "logits_body", transB=1)
    return cut(graph, graph.add("Gemm", [x, "embed.weight"], "logits_padded", transB=1), vocab_size)


def cut(graph: GraphBuilder, logits: str, vocab_size: int) -> str:
    bounds = [graph.integers(0), graph.integers(vocab_size), graph.integers(1)]
    return graph.add("Slice", [logits, *bounds], "logits_cut")


def first_rows(packed: PackedWeight, count: int) -> PackedWeight:
    """The first `count` rows; a codebook's blocks may run from one row into the next, so it keeps the block begun."""
    if isinstance(packed, CodebookTensor):
        size = count * packed.shape[1]
        codes, magnitudes = packed.packed[: -(-size // 2)], packed.magnitudes[: -(-size // CODEBOOK_BLOCK)]
        return CodebookTensor(codes, magnitudes, (count, packed.shape[1]), packed.format)
    outliers = packed.outliers
    return replace(
        packed,
        packed=packed.packed[:count],
        scales=packed.scales[:count],
        zeros=None if packed.zeros is None else packed.zeros[:count],
        outliers=None if outliers is None else replace(outliers, weights=outliers.weights[:count]),
    )
