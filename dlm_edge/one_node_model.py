"""An ONNX model of one node, written byte by byte: the runtime can test its operators without the package onnx.

Field numbers are those of onnx.proto (ModelProto, GraphProto, NodeProto, AttributeProto, ValueInfoProto, TensorProto); the encoding is
that of protocol buffers: a key (field number, wire type), then a varint or a length and bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

IR_VERSION, OPSET = 11, 24
ELEMENT_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "float16": 10}
ATTRIBUTE_INT, ATTRIBUTE_STRING = 2, 3


def one_node_model(
    operator: tuple[str, str, int],
    inputs: Mapping[str, np.dtype[np.generic]],
    outputs: Mapping[str, np.dtype[np.generic]],
    *,
    overload: str = "",
    attributes: Mapping[str, int | str] | None = None,
    constants: Mapping[str, NDArray[np.generic]] | None = None,
) -> bytes:
    """`operator` is (name, domain, version). No shapes are declared: the node sees whatever is passed.

    `constants` are its last inputs, as initializers: ONNX Runtime packs them once, when the session is opened.
    """
    name, domain, version = operator
    constants = constants or {}
    node = texts(1, [*inputs, *constants]) + texts(2, outputs) + text(4, name) + text(7, domain) + text(8, overload)
    for key, value in (attributes or {}).items():
        kind = number(3, value) if isinstance(value, int) else text(4, value)
        node += block(
            5, text(1, key) + kind + number(20, ATTRIBUTE_INT if isinstance(value, int) else ATTRIBUTE_STRING)
        )
    graph = block(1, node) + text(2, "one_node")
    for key, array in constants.items():
        sizes = b"".join(number(1, size) for size in array.shape)
        kind = number(2, ELEMENT_TYPES[array.dtype.name])
        graph += block(5, sizes + kind + text(8, key) + block(9, np.ascontiguousarray(array).tobytes()))
    for field, values in ((11, inputs), (12, outputs)):
        for key, dtype in values.items():
            tensor = block(1, number(1, ELEMENT_TYPES[dtype.name]))
            graph += block(field, text(1, key) + block(2, tensor))
    opsets = (text(1, key) + number(2, value) for key, value in ({"": OPSET} | {domain: version}).items())
    return number(1, IR_VERSION) + block(7, graph) + b"".join(block(8, opset) for opset in opsets)


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def block(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def text(field: int, value: str) -> bytes:
    return block(field, value.encode()) if value else b""


def texts(field: int, values: Iterable[str]) -> bytes:
    return b"".join(text(field, value) for value in values)
