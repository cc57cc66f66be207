"""A graph under construction: nodes in order, initializers on disk, names that say where a value comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from dlm_edge.export.external_data import ExternalData
from dlm_edge.kernels import DOMAIN, OPERATOR_VERSION

MICROSOFT = "com.microsoft"
OPSET = 24
IR_VERSION = 11


def opset_imports() -> list[onnx.OperatorSetIdProto]:
    """Of every model written here."""
    versions = {"": OPSET, MICROSOFT: 1, DOMAIN: OPERATOR_VERSION}
    return [helper.make_opsetid(domain, version) for domain, version in versions.items()]


class GraphBuilder:
    """`add` appends a node and returns the name of its (first) output; values are addressed by name."""

    def __init__(self, data: ExternalData, float_dtype: np.dtype[Any]) -> None:
        self.data, self.float_dtype = data, float_dtype
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.functions: dict[tuple[str, str], onnx.FunctionProto] = {}  # of weights, by operator and overload
        self.scope = ""
        self._constants: set[str] = set()

    def add(
        self,
        op: str,
        inputs: list[str],
        name: str,
        *,
        more: Sequence[str] = (),
        domain: str = "",
        overload: str = "",
        **attributes: Any,
    ) -> str:
        """`more`: names of further outputs, taken as they are."""
        output = f"{self.scope}{name}"
        node = helper.make_node(op, inputs, [output, *more], name=output, domain=domain, **attributes)
        if overload:
            node.overload = overload
        self.nodes.append(node)
        return output

    def add_outer(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """As `add`, for an output of the graph: its name has no scope."""
        scope, self.scope = self.scope, ""
        try:
            return self.add(op, inputs, name, **attributes)
        finally:
            self.scope = scope

    def rename_last(self, output: str, name: str) -> None:
        """Of the node that was added last, and gives `output` to nobody yet."""
        node = self.nodes[-1]
        assert list(node.output) == [output], "only the last node can be renamed"
        node.output[0] = node.name = name

    def weight(self, name: str, array: NDArray[np.generic]) -> str:
        self.initializers.append(self.data.add(name, array))
        return name

    def integers(self, *values: int) -> str:
        """A small int64 constant [len(values)], shared by all who ask for the same one."""
        return self._constant("const_" + "_".join(str(v) for v in values), np.array(values, np.int64))

    def index(self, value: int) -> str:
        """A shared int64 scalar."""
        return self._constant(f"index_{value}", np.array(value, np.int64))

    def number(self, name: str, value: float) -> str:
        """A shared scalar in the body's dtype."""
        return self._constant(name, np.array(value, self.float_dtype))

    def byte(self, name: str, value: int) -> str:
        """A shared uint8 scalar."""
        return self._constant(name, np.array(value, np.uint8))

    def shared(self, name: str, array: NDArray[np.generic]) -> str:
        """As `weight`, for an array that is the same under the same name."""
        if name not in self._constants:
            self._constants.add(name)
            self.weight(name, array)
        return name

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        if name not in self._constants:
            self._constants.add(name)
            self.initializers.append(numpy_helper.from_array(value, name))
        return name
