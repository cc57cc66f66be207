"""How large the weights of an exported model are, from shapes alone: what `export` will write for the CPU.

Integer codes lie in tiles where our native library is, because `--profile auto` chooses QLinear there but for odd machines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.families.roles import role_shapes
from dlm_edge.families.spec import ModelSpec
from dlm_edge.kernels import library_path
from dlm_edge.kernels.qlinear.layout import COLUMNS, filled, n_tiles
from dlm_edge.quantized import CODEBOOK_BLOCK, container_bits
from dlm_edge.runtime.layouts import layout_kind

ALIGNMENT = 4096  # of every tensor in the data file
FLOAT_BYTES, HALF_BYTES = 4, 2  # four: activations, scales, and weights that are not packed


@dataclass(frozen=True, slots=True)
class PackedForm:
    """How one weight is packed. `bits` is a mean where a job will allocate them, `group` 0 is one per output channel."""

    bits: float
    group: int
    zero: str = "symmetric"
    outliers: int = 0  # columns kept in floating point
    is_codebook: bool = False
    in_tiles: bool = False  # kernels/qlinear/layout.py: scales in float16, zeros in bytes


def packed_bytes(shape: tuple[int, ...], form: PackedForm) -> int:
    """Codes, scales and zeros of a weight [out, in] as the graph holds them: 3 bits in 4."""
    rows, columns = shape
    if form.in_tiles:
        rows, columns = n_tiles(rows) * COLUMNS, filled(columns)
    if form.is_codebook:
        return rows * columns // 2 + FLOAT_BYTES * rows * columns // CODEBOOK_BLOCK
    width = form.bits if form.bits % 1 else container_bits(int(form.bits))
    groups = math.ceil(shape[1] / (form.group or shape[1]))
    zeros = {"symmetric": 0.0, "integer": 1.0 if form.in_tiles else width / 8, "float": float(FLOAT_BYTES)}[form.zero]
    grid = rows * groups * ((HALF_BYTES if form.in_tiles else FLOAT_BYTES) + zeros)
    return math.ceil(rows * columns * width / 8 + grid) + FLOAT_BYTES * rows * form.outliers


def exported_bytes(spec: ModelSpec, forms: Mapping[str, PackedForm]) -> int:
    """Of the file beside the graph; weights without a form are float32."""
    total = 0
    for role, shape in role_shapes(spec).items():
        form = forms.get(role)
        size = FLOAT_BYTES * math.prod(shape) if form is None else packed_bytes(shape, form)
        is_cut = form is not None and not form.in_tiles and spec.vocab_size < spec.embedding_rows
        if role == "embed.weight" and spec.tied_head and is_cut:
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
    return as_exported(forms)


def as_exported(forms: Mapping[str, PackedForm]) -> dict[str, PackedForm]:
    in_tiles = library_path() is not None
    return {role: replace(form, in_tiles=in_tiles and not form.is_codebook) for role, form in forms.items()}


def latent_bytes(spec: ModelSpec, layout: str) -> int:
    """The matrices to the latents of keys and values and back, which the latent layouts add to the weights."""
    return 4 * FLOAT_BYTES * spec.n_layers * spec.kv_width**2 * (layout_kind(layout).form == "latent")
