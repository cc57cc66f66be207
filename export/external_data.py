"""The weight file beside the graph: written front to back, one tensor at a time, never appended to."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray

from dlm_edge import files

ALIGNMENT = 4096  # a page, so that ONNX Runtime can map each tensor where it lies
INLINE_BYTES = 1024  # smaller tensors stay in the graph

TYPES = {
    np.dtype(np.float32): onnx.TensorProto.FLOAT,
    np.dtype(np.float16): onnx.TensorProto.FLOAT16,
    np.dtype(np.uint8): onnx.TensorProto.UINT8,
    np.dtype(np.int8): onnx.TensorProto.INT8,
    np.dtype(np.int64): onnx.TensorProto.INT64,
}


class ExternalData:
    """Streams tensors into one open file and returns initializers that point into it.

    A tensor that was written before (a tied embedding) is found by its hash and not written again.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.name = file, name
        self.size = 0
        self.written: dict[bytes, int] = {}

    def add(self, name: str, array: NDArray[np.generic]) -> onnx.TensorProto:
        array = np.ascontiguousarray(array)
        tensor = onnx.TensorProto(name=name, data_type=TYPES[array.dtype], dims=array.shape)
        if array.nbytes < INLINE_BYTES:
            tensor.raw_data = array.tobytes()
            return tensor
        offset = self._write(array)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", self.name), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def _write(self, array: NDArray[np.generic]) -> int:
        data = memoryview(array.view(np.uint8).reshape(-1))  # type: ignore[arg-type]
        digest = hashlib.sha256(data).digest()
        if digest in self.written:
            return self.written[digest]
        padding = -self.size % ALIGNMENT
        files.calls.write(self.file, bytes(padding))
        offset = self.size + padding
        files.calls.write(self.file, data)
        self.size = offset + array.nbytes
        self.written[digest] = offset
        return offset


class InlineData(ExternalData):
    """Keeps every tensor inside the model, which then needs no file."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), "")

    def add(self, name: str, array: NDArray[np.generic]) -> onnx.TensorProto:
        array = np.ascontiguousarray(array)
        return onnx.TensorProto(name=name, data_type=TYPES[array.dtype], dims=array.shape, raw_data=array.tobytes())


def data_path(graph_path: Path) -> Path:
    return graph_path.with_name(graph_path.name + ".data")
