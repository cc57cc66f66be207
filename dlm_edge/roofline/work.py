"""What a pass has to do: operations and bytes of its linear layers, its attention and its head, from shapes alone.

Operations are those of matrix products, two for a multiplication and an addition, as the model defines them: outlier
columns, zeros and rounding are how a weight is computed, not what. Bytes are operands and results of each product, each
once: weights as the bundle stores them, rows in and out in the body's type, and cached keys and values in their layout.
Norms, gates and rotary embedding are not counted, so glue has a time and no place under a roof.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dlm_edge.bundle import Manifest
from dlm_edge.exported_size import FLOAT_BYTES, PackedForm, packed_bytes
from dlm_edge.families import FAMILIES
from dlm_edge.families.roles import layer_shapes
from dlm_edge.families.spec import ModelSpec
from dlm_edge.roofline.node_kinds import ROLES
from dlm_edge.runtime.layouts import CacheShape, bytes_per_token, layout_kind
from dlm_edge.runtime.step_model import FULL_ATTENTION

BODY_BYTES = {"cpu": 4, "cuda": 2}
IN_FLOAT = ("MatMul", "MatMulNBits", "MatMulBnb4")  # all other forms of a weight multiply integers
INT8_LEVEL = 4  # MatMulNBits rounds its input to int8


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A run of the graph: `rows` of a window at position `start`, over `cache_len` stored positions, with logits of
    `logit_rows`; `stored` of its rows are kept. `attn_block` as in StepModel.run."""

    rows: int
    start: int = 0
    cache_len: int = 0
    attn_block: int = FULL_ATTENTION
    logit_rows: int = 0
    stored: int = 0

    @property
    def prefix(self) -> int:
        """Stored positions that are read: those of the window itself are not."""
        inside = min(self.cache_len, self.start + self.rows) - self.start
        return self.cache_len - max(inside, 0)

    @property
    def pairs(self) -> int:
        """Keys that the window's rows see, all rows together."""
        end = self.start + self.rows
        in_window = sum(
            min((at // self.attn_block + 1) * self.attn_block, end) - self.start for at in range(self.start, end)
        )
        return self.rows * self.prefix + in_window


@dataclass(slots=True)
class Work:
    """`integer` of the `operations` can be done in int8."""

    operations: int = 0
    integer: int = 0
    bytes: float = 0.0

    def add(self, other: Work) -> None:
        self.operations += other.operations
        self.integer += other.integer
        self.bytes += other.bytes


@dataclass(frozen=True, slots=True)
class Weight:
    """One matrix [out, in] as the bundle holds it."""

    out: int
    width: int
    stored_bytes: int
    is_integer: bool

    def product(self, rows: int, body_bytes: int) -> Work:
        operations = 2 * rows * self.out * self.width
        moved = self.stored_bytes + rows * (self.out + self.width) * body_bytes
        return Work(operations, operations * self.is_integer, moved) if rows else Work()


@dataclass(frozen=True, slots=True)
class ModelWork:
    """`layers`: the linears of each layer by role."""

    spec: ModelSpec
    layout: str
    group: int
    body_bytes: int
    head: Weight
    layers: tuple[Mapping[str, Weight], ...] = field(repr=False)

    @classmethod
    def of(cls, manifest: Manifest) -> ModelWork:
        spec, body = manifest.model, BODY_BYTES[manifest.target]
        forms = {entry["name"]: entry for entry in manifest.nodes}
        outliers = outlier_columns(manifest)

        def weight(role: str, shape: tuple[int, ...]) -> Weight:
            entry = forms.get(role)
            if entry is None or entry["form"] == "MatMul":
                return Weight(shape[0], shape[1], math.prod(shape) * body, False)
            # The kernel of 2 bits takes zeros as floats where activations are not rounded, see export/n_bits.py.
            is_exact = entry["form"] == "MatMulNBits" and entry["accuracy_level"] != INT8_LEVEL
            zero = "float" if entry["bits"] == 2 and is_exact and manifest.target == "cpu" else entry["zero"]
            form = PackedForm(
                entry["bits"],
                entry["group_size"],
                zero,
                outliers.get(role, 0),
                entry["form"] == "MatMulBnb4",
                entry["form"] == "QLinear",
            )
            size = packed_bytes(shape, form)
            is_integer = entry["accuracy_level"] == INT8_LEVEL or entry["form"] not in IN_FLOAT
            return Weight(shape[0], shape[1], size, is_integer)

        shapes = {role: shape for role, shape in layer_shapes(spec).items() if role.split(".")[0] in ROLES}
        shapes = {role: shape for role, shape in shapes.items() if role.endswith(".weight")}
        layers = tuple(
            {role.split(".")[0]: weight(f"layers.{i}.{role}", shape) for role, shape in shapes.items()}
            for i in range(spec.n_layers)
        )
        head = weight("head.weight", (spec.vocab_size, spec.hidden_size))
        return cls(spec, manifest.cache_layout, manifest.cache_group, body, head, layers)

    def of_pass(self, at: Pass) -> dict[str, Work]:
        """By kind of node: linear, attention and head."""
        found = {"linear": Work(), "attention": self.attention(at), "head": Work()}
        for layer in self.layers:
            for role, weight in layer.items():
                found["linear"].add(weight.product(self.rows_through(role, at), self.body_bytes))
        found["head"].add(self.head.product(at.logit_rows, self.body_bytes))
        return found

    def rows_through(self, role: str, at: Pass) -> int:
        """Layouts that store X send the prefix's rows through the projections of keys and values again."""
        again = role in ("k", "v") and layout_kind(self.layout).form in ("x", "deltas")
        return at.rows + at.prefix * again

    def attention(self, at: Pass) -> Work:
        """Scores and their products with values; keys and values that latents are made into, and latents that are stored."""
        spec = self.spec
        operations = 4 * spec.q_width * at.pairs
        if layout_kind(self.layout).form == "latent":
            operations += 4 * spec.kv_width**2 * (at.prefix + at.stored)
        moved = at.rows * (2 * spec.q_width + 2 * spec.kv_width) * self.body_bytes * spec.n_layers
        cached = bytes_per_token(self.layout, CacheShape.of(spec), group=self.group) * (at.prefix + at.stored)
        if layout_kind(self.layout).form == "latent" and at.prefix + at.stored:
            cached += 4 * spec.kv_width**2 * FLOAT_BYTES * spec.n_layers  # to latents and back, of keys and of values
        return Work(operations * spec.n_layers, 0, moved + cached)


def outlier_columns(manifest: Manifest) -> dict[str, int]:
    """Columns kept in floating point, by role, as the quantization record in the manifest names them."""
    layers = (manifest.quantization or {}).get("layers", ())
    by_name = {layer["name"]: int(layer.get("outlier_columns", 0)) for layer in layers}
    name_of = FAMILIES[manifest.model.family].tensor_name
    roles = [entry["name"] for entry in manifest.nodes if entry["name"].startswith("layers.")]
    return {role: by_name[name_of(role)] for role in roles if by_name.get(name_of(role))}
