"""How large the weights of an exported model are, from shapes alone: what `export` will write for the CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.families.roles import role_shapes
from dlm_edge.families.spec import ModelSpec
from dlm_edge.quantized import CODEBOOK_BLOCK, container_bits
from dlm_edge.runtime.layouts import layout_kind

ALIGNMENT = 4096  # of every tensor in the data file
FLOAT_BYTES = 4  # activations, scales, and weights that are not packed


@dataclass(frozen=True, slots=True)
class PackedForm:
    """How one weight is packed. `bits` is a mean where a job will allocate them, `group` 0 is one per output channel."""

    bits: float
    group: int
    zero: str = "symmetric"
    outliers: int = 0  # columns kept in floating point
    is_codebook: bool = False


def packed_bytes(shape: tuple[int, ...], form: PackedForm) -> int:
    """Codes, scales and zeros of a weight [out, in] as the graph holds them: scales in float32, 3 bits in 4."""
    rows, columns = shape
    if form.is_codebook:
        return rows * columns // 2 + FLOAT_BYTES * rows * columns // CODEBOOK_BLOCK
    width = form.bits if form.bits % 1 else container_bits(int(form.bits))
    groups = math.ceil(columns / (form.group or columns))
    zeros = {"symmetric": 0.0, "integer": width / 8, "float": float(FLOAT_BYTES)}[form.zero]
    grid = rows * groups * (FLOAT_BYTES + zeros)
    return math.ceil(rows * columns * width / 8 + grid) + FLOAT_BYTES * rows * form.outliers


def exported_bytes(spec: ModelSpec, forms: Mapping[str, PackedForm]) -> int:
    """Of the file beside the graph; weights without a form are float32."""
    total = 0
    for role, shape in role_shapes(spec).items():
        form = forms.get(role)
        size = FLOAT_BYTES * math.prod(shape) if form is None else packed_bytes(shape, form)
        if role == "embed.weight" and form is not None and spec.tied_head and spec.vocab_size < spec.embedding_rows:
            size *= 2  # the head has fewer rows, so its bytes are others
        total += size + (ALIGNMENT // 2 if size >= ALIGNMENT // 4 else 0)
    return total


def forms_of(checkpoint: Checkpoint) -> dict[str, PackedForm]:
    """The packed weights of a checkpoint."""
    forms = {}
    for role in checkpoint.roles():
        record = checkpoint.layer_record(role)
        if record is not None:
            forms[role] = PackedForm(
                record.bits, record.group_size, record.zero, record.outlier_columns, record.format != "int"
            )
    return forms


def latent_bytes(spec: ModelSpec, layout: str) -> int:
    """The matrices to the latents of keys and values and back, which the latent layouts add to the weights."""
    return 4 * FLOAT_BYTES * spec.n_layers * spec.kv_width**2 * (layout_kind(layout).form == "latent")
