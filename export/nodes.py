"""A graph under construction: nodes in order, initializers on disk, names that say where a value comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from dlm_edge.export.external_data import ExternalData

MICROSOFT = "com.microsoft"


class GraphBuilder:
    """`add` appends a node and returns the name of its (first) output; values are addressed by name."""

    def __init__(self, data: ExternalData) -> None:
        self.data = data
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.scope = ""
        self._constants: dict[tuple[Any, ...], str] = {}

    def add(
        self, op: str, inputs: list[str], name: str, *, domain: str = "", overload: str = "", **attributes: Any
    ) -> str:
        output = f"{self.scope}{name}"
        node = helper.make_node(op, inputs, [output], name=output, domain=domain, **attributes)
        if overload:
            node.overload = overload
        self.nodes.append(node)
        return output

    def weight(self, name: str, array: NDArray[np.generic]) -> str:
        self.initializers.append(self.data.add(name, array))
        return name

    def integers(self, *values: int) -> str:
        """A small int64 constant [len(values)], shared by all who ask for the same one."""
        key = ("int64", *values)
        if key not in self._constants:
            name = "const_" + "_".join(str(v) for v in values)
            self.initializers.append(helper.make_tensor(name, onnx.TensorProto.INT64, [len(values)], values))
            self._constants[key] = name
        return self._constants[key]
