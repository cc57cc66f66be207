"""The gated feed-forward part of a layer: down(silu(gate(h)) * up(h)).

Where the weights run as QLinear, gate and up are one product, and `down` takes it as it is: the gate is applied while its
rows are rounded, and the product of gate and up is never written.
"""

from __future__ import annotations

from dlm_edge.export.linear import Q_LINEAR, WeightNodes, in_blocks, kernel_of
from dlm_edge.export.q_linear import q_linear
from dlm_edge.quantized import QuantizedTensor


def feed_forward(weights: WeightNodes, i: int, h: str) -> str:
    """[B, W, hidden] of the normalised rows h [B, W, hidden]."""
    roles = {kind: f"layers.{i}.{kind}.weight" for kind in ("gate", "up", "down")}
    down, record = gated_down(weights, roles["down"]), weights.checkpoint.layer_record(roles["down"])
    both = None if down is None else weights.side_by_side(h, [roles["gate"], roles["up"]], "gate_up")
    if both is not None and down is not None and record is not None:
        weights.quantized.append(weights.entry(roles["down"], down) | Q_LINEAR)
        return q_linear(weights.graph, both, roles["down"], down, "down", row_blocks=in_blocks(record), gated=True)
    g = weights.graph
    gate, up = weights.linear(h, roles["gate"], "gate"), weights.linear(h, roles["up"], "up")
    silu = g.add("Mul", [gate, g.add("Sigmoid", [gate], "gate_sigmoid")], "gate_silu")
    return weights.linear(g.add("Mul", [silu, up], "gated"), roles["down"], "down")


def gated_down(weights: WeightNodes, role: str) -> QuantizedTensor | None:
    """The weight, where it runs as a QLinear that takes gate and up: its columns have to be in their own order."""
    tensor, record = weights.checkpoint.load_packed(role), weights.checkpoint.layer_record(role)
    if record is None or not isinstance(tensor, QuantizedTensor) or tensor.order is not None:
        return None
    return tensor if kernel_of(weights.precision.kernel, role, tensor, record) == "qlinear" else None
