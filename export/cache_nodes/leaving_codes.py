"""What a refresh stores, as the codes that the cache will hold: QuantizeRows, layer by layer.

Families with full attention fill their cache by passes over the whole sequence. Were rows to leave such a pass in float32,
those of all layers would lie in memory together, as large as an exact cache: the runtime keeps what is an output of
the graph to the end of a run, whether the caller asked for it or not. So the caller says how many rows it wants, in two
inputs of the graph, both 0 in passes that store nothing:

stored_rows  [1]: rows from the window's first one on that are stored. The outputs are what the arrays of the layout receive,
             under their names with the suffix _new.
stored_keys  [1]: rows whose keys leave too, as floats, for the bounds of their pages
"""

from __future__ import annotations

from dlm_edge.export.cache_nodes.contract import REAL, Projections, Tensors, Window, kv_shape
from dlm_edge.families.spec import ModelSpec
from dlm_edge.kernels import DOMAIN
from dlm_edge.kernels.dequantize_rows.function import overload
from dlm_edge.kernels.dequantize_rows.reference import Axis
from dlm_edge.kernels.quantize_rows import function as quantize_rows

INPUTS = ("stored_rows", "stored_keys")


def leaves_codes(spec: ModelSpec) -> bool:
    """Whether this family's cache is filled by refreshes."""
    return spec.conventions.attention == "full"


def code_outputs(inputs: Tensors, spec: ModelSpec, body: int, copies: int | str = 1) -> Tensors:
    """Of one layer whose cache has these inputs."""
    shapes: Tensors = {f"{n}_new": (kind, ["lead", f"{n}_rows", dims[-1]]) for n, (kind, dims) in inputs.items()}
    return shapes | {"keys_new": (body, kv_shape(spec, "new_keys", copies))}


def token_group(lent: Projections, scale: str, width: int) -> str:
    """int64 [1]: the group along a row of `width` values, from the input `scale` [..., width / group]."""
    g = lent.graph
    return g.add("Div", [g.integers(width), g.add("Shape", [scale], "n_scales", start=-1)], "token_group")


def channel_group(lent: Projections, tail: str) -> str:
    """int64 [1]: the group along rows, from the input `tail` [..., group, width]."""
    return lent.graph.add("Shape", [tail], "channel_group", start=-2, end=-1)


def as_floats(lent: Projections, rows: str, name: str) -> str:
    return rows if lent.body == REAL else lent.graph.add("Cast", [rows], name, to=REAL)


def leave_codes(lent: Projections, i: int, name: str, rows: str, group: str, bits: int, axis: Axis) -> list[str]:
    """float32 `rows` [lead, W, width] to the outputs of the layer's part `name`, such as k_cache_new; returns them."""
    g = lent.graph
    fields = ("cache", "scale", "low", "tail")[: len(quantize_rows.outputs(axis))]
    first, *more = (f"{name}_{field}_new.{i}" for field in fields)
    g.add_outer(
        quantize_rows.OPERATOR,
        [rows, "stored_rows", group],
        first,
        more=more,
        domain=DOMAIN,
        overload=overload(bits, axis),
        bits=bits,
        axis=axis,
    )
    return [first, *more]


def leave_keys(lent: Projections, window: Window, keys: str) -> None:
    """Of `keys` [B, n_kv_heads, W, head_dim], after RoPE, those that the caller asked for."""
    g = lent.graph
    zero, axis = g.integers(0), g.integers(2)
    g.add_outer("Slice", [keys, zero, "stored_keys", axis], f"keys_new.{window.layer}")
