"""What belongs to no layer: embedding and head in 8 bits, and the final norm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dlm_edge.quant import rtn
from dlm_edge.quant.gptq import rows_at_once
from dlm_edge.quant.layer_file import StoredTensor, packed_tensors
from dlm_edge.quant.methods import METHODS, nearest_of_pieces, record_of
from dlm_edge.quant.plan import OUTER_BITS, Plan
from dlm_edge.quant.source_weights import SourceWeights
from dlm_edge.quantized import LayerRecord, QuantizedTensor, dequantize

CHUNK_ROWS = 4096


def outer_tensors(plan: Plan, weights: SourceWeights) -> tuple[list[StoredTensor], list[LayerRecord]]:
    """Everything outside the layers: packed where the plan says so, else the source's bytes (float32 once rotated)."""
    tensors, records = [], []
    for role in plan.outer_roles:
        name = plan.name_of(role)
        if role in plan.outer:
            packed = round_rows(plan, weights, role)
            tensors += packed_tensors(name, packed)
            record = record_of(name, "rtn", packed, METHODS["rtn"])
            if weights.zeroed.get(weights.origin(role)):
                record.notes.append(f"{weights.zeroed[weights.origin(role)]} NaN or infinite weights set to zero")
            records.append(record)
        elif weights.rotation is not None:
            tensors.append(StoredTensor(name, "F32", weights.shape(role), weights.in_float32(role)))
        else:
            checkpoint = weights.checkpoint
            tensors.append(StoredTensor(name, checkpoint.dtype(role), checkpoint.shape(role), weights.stored(role)))
    return tensors, records


def round_rows(plan: Plan, weights: SourceWeights, role: str) -> QuantizedTensor:
    """An embedding or head rounded to nearest, some rows at a time: it is the largest tensor there is."""
    n_rows, columns = weights.shape(role)
    config = rtn.RtnConfig(bits=OUTER_BITS, group_size=plan.outer_group)
    pieces = (piece.numpy() for _, rows in chunks(weights, role) for piece in torch.split(rows, rows_at_once(columns)))
    return nearest_of_pieces(plan.name_of(role), pieces, n_rows, config)


def chunks(weights: SourceWeights, role: str) -> Iterator[tuple[int, Tensor]]:
    """(number of the first row, rows in float32) of the embedding or head as the source (rotated) has it."""
    for first in range(0, weights.shape(role)[0], CHUNK_ROWS):
        last = min(first + CHUNK_ROWS, weights.shape(role)[0])
        yield first, torch.from_numpy(weights.rows(role, first, last))


def packed_chunks(tensor: QuantizedTensor) -> Iterator[tuple[int, Tensor]]:
    """The same of a packed one."""
    for first in range(0, len(tensor.packed), CHUNK_ROWS):
        piece = slice(first, first + CHUNK_ROWS)
        part = QuantizedTensor(tensor.packed[piece], tensor.scales[piece], tensor.bits)
        yield first, torch.from_numpy(dequantize(part))
