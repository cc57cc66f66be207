"""Whether a function body may write a state output into the memory of its input: a question of order, so of its graph.

A runtime is free to choose any order of nodes that the values allow. A run that came out right shows one order only.
"""

from __future__ import annotations

import onnx


def late_readers(function: onnx.FunctionProto, state: str, output: str) -> list[onnx.NodeProto]:
    """The nodes that may still read `state` after the node that makes `output` has run.

    A node reads it directly or through a view of it, such as Reshape gives; the length of an axis is no content.
    """
    makers = {name: node for node in function.node for name in node.output}
    before, pending = {output}, [output]
    while pending:
        node = makers.get(pending.pop())
        fresh = [name for name in (node.input if node else []) if name not in before]
        before.update(fresh)
        pending.extend(fresh)
    views = {state}
    late = []
    for node in function.node:
        if views.isdisjoint(node.input) or node.op_type == "Shape" or output in node.output:
            continue
        if node.op_type in ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Cast", "CastLike"):
            views.update(node.output)
        elif before.isdisjoint(node.output):
            late.append(node)
    return late
