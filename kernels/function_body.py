"""Writing the body of an ONNX function, node by node."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper


class FunctionBody:
    """Collects nodes of standard operators; every method returns the name of a new value.

    Three values are there from the start, int64 [1]: "zero", "one", and "rest", which is -1. The graph of a Loop, which
    sees the names of the body around it, has a prefix for its own and none of the three.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        if not prefix:
            self.ints("zero", 0), self.ints("one", 1), self.ints("rest", -1)

    def __call__(self, op_type: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{self.prefix}{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def ints(self, name: str, *values: int) -> str:
        return self("Constant", name=name, value_ints=list(values))

    def number(self, value: float) -> str:
        return self("Constant", value_float=value)

    def attribute(self, name: str) -> str:
        """The function's own attribute of type float."""
        output = self("Constant")
        reference = self.nodes[-1].attribute.add()
        reference.name, reference.ref_attr_name, reference.type = "value_float", name, onnx.AttributeProto.FLOAT
        return output

    def int_attribute(self, name: str) -> str:
        """The function's own attribute of type int, as int64 [1]."""
        scalar = self("Constant")
        reference = self.nodes[-1].attribute.add()
        reference.name, reference.ref_attr_name, reference.type = "value_int", name, onnx.AttributeProto.INT
        return self("Unsqueeze", scalar, "zero", name=name)

    def dim(self, tensor: str, axis: int, name: str = "") -> str:
        """One dimension, as int64 [1]."""
        return self("Shape", tensor, start=axis, end=axis + 1, name=name)

    def reshape(self, x: str, *dims: str, name: str = "") -> str:
        """`dims` are int64 [1]; a 0 among them is a length of 0."""
        return self("Reshape", x, self("Concat", *dims, axis=0), allowzero=1, name=name)

    def filled(self, value: int, element_type: int, *dims: str) -> str:
        """A tensor of the shape `dims`, int64 [1] each."""
        element = helper.make_tensor("value", element_type, [1], [value])
        return self("ConstantOfShape", self("Concat", *dims, axis=0), value=element)

    def float32(self, x: str, name: str = "") -> str:
        return self("Cast", x, to=TensorProto.FLOAT, name=name)

    def any(self, x: str, axis: str, name: str = "") -> str:
        """Of bool, keeping the axis with length 1. By way of float32: runtimes lack reductions of bool."""
        return self("Cast", self("ReduceMax", self.float32(x), axis), to=TensorProto.BOOL, name=name)

    def ceil_div(self, x: str, y: str, name: str = "") -> str:
        """Of int64; x is not negative."""
        return self("Div", self("Sub", self("Add", x, y), "one"), y, name=name)

    def positions(self, begin: str, end: str, name: str = "") -> str:
        """begin .. end - 1, from int64 [1] inputs. Range wants scalars."""
        count = self("Squeeze", self("Sub", end, begin), "zero")
        steps = self("Range", self("Squeeze", "zero", "zero"), count, self("Squeeze", "one", "zero"))
        return self("Add", steps, begin, name=name)
