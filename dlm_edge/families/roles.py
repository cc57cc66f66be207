"""The weights of a model: their roles in layer order, and the shape each must have."""

from __future__ import annotations

from dlm_edge.families.spec import ModelSpec


def role_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Role -> shape for every weight that the model has, embedding first, head last (absent when tied)."""
    hidden, rows = spec.hidden_size, spec.embedding_rows
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (rows, hidden)}
    layer = layer_shapes(spec)
    for i in range(spec.n_layers):
        shapes |= {f"layers.{i}.{part}": shape for part, shape in layer.items()}
    shapes["final_norm.weight"] = (hidden,)
    if not spec.tied_head:
        shapes["head.weight"] = (rows, hidden)
    return shapes


def layer_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The weights of one layer, without the `layers.{i}.` in front, in the order of computation."""
    hidden, width = spec.hidden_size, spec.intermediate_size
    out_features = {"q": spec.q_width, "k": spec.kv_width, "v": spec.kv_width}
    shapes: dict[str, tuple[int, ...]] = {"attn_norm.weight": (hidden,)}
    for name, out in out_features.items():
        shapes[f"{name}.weight"] = (out, hidden)
        if spec.qkv_bias:
            shapes[f"{name}.bias"] = (out,)
    if spec.qk_norm:
        shapes |= {"q_norm.weight": (spec.head_dim,), "k_norm.weight": (spec.head_dim,)}
    return shapes | {
        "o.weight": (hidden, spec.q_width),
        "mlp_norm.weight": (hidden,),
        "gate.weight": (width, hidden),
        "up.weight": (width, hidden),
        "down.weight": (hidden, width),
    }
