"""A graph with every rounding of activations taken out: what can be compared with float layers to the last digits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import helper

from dlm_edge import files
from dlm_edge.export.exact_linear import exact_function, exact_linear
from dlm_edge.kernels.qlinear.function import OPERATOR as Q_LINEAR


@contextmanager
def exact_twin(graph_path: Path) -> Iterator[Path]:
    """The same graph over the same data file, with every packed weight on float activations."""
    model = onnx.load(str(graph_path), load_external_data=False)
    nodes = [twin_node for node in model.graph.node for twin_node in exact_nodes(node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.functions.extend([exact_function(each) for each in model.functions if each.name == Q_LINEAR])
    twin = graph_path.with_name("exact-" + graph_path.name)
    files.write_file(twin, model.SerializeToString())
    try:
        yield twin
    finally:
        files.calls.unlink(twin)


def exact_nodes(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """What stands for a node when nothing is rounded to int8: only `int8_linear` makes Round, and casts to uint8."""
    to = next((a.i for a in node.attribute if a.name == "to"), None)
    if node.op_type == "Round" or (node.op_type == "Cast" and to == onnx.TensorProto.UINT8):
        return [helper.make_node("Identity", node.input, node.output)]
    if node.op_type == "MatMulInteger":
        return float_product(node)
    if node.op_type == Q_LINEAR:
        return exact_linear(node)
    for attribute in node.attribute:
        if attribute.name == "accuracy_level":
            attribute.i = 0
    return [node]


def float_product(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """(x - zero point) times (codes - zeros), all of them cast to float first."""
    out, nodes, shifted = node.output[0], list[onnx.NodeProto](), list[str]()
    for value, zero in zip(node.input[:2], [*node.input[2:], ""], strict=False):
        names = [f"{out}_{len(nodes)}_value", f"{out}_{len(nodes)}_zero", f"{out}_{len(nodes)}_shifted"]
        nodes.append(helper.make_node("Cast", [value], names[:1], to=onnx.TensorProto.FLOAT))
        if zero:
            nodes.append(helper.make_node("Cast", [zero], names[1:2], to=onnx.TensorProto.FLOAT))
            nodes.append(helper.make_node("Sub", names[:2], names[2:]))
        shifted.append(names[2] if zero else names[0])
    return [*nodes, helper.make_node("MatMul", shifted, [out])]
