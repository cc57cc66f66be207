"""One packed weight as a graph of its own, run in ONNX Runtime: `run_linear(checkpoint, tensor, x)`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, helper

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.export.external_data import TYPES, InlineData
from dlm_edge.export.linear import WeightNodes
from dlm_edge.export.nodes import IR_VERSION, MICROSOFT, OPSET, GraphBuilder
from dlm_edge.export.profiles import Precision
from dlm_edge.quantized import PackedWeight
from tests.packed_folder import Activations, record_of

EXACT = Precision(np.dtype(np.float32), "n_bits")
FAST = Precision(np.dtype(np.float32), "blocks")
HALF = Precision(np.dtype(np.float16), "n_bits")


def build_linear(
    checkpoint: Checkpoint,
    tensor: PackedWeight,
    precision: Precision,
    activations: Activations = "float",
    role: str = "layers.0.up.weight",
    bias: str | None = None,
) -> tuple[ModelProto, WeightNodes]:
    graph = GraphBuilder(InlineData(), precision.body)
    weights = WeightNodes(checkpoint, graph, precision)
    out = weights.packed_linear("x", role, tensor, record_of("w", tensor, activations), "y", bias)
    rows, columns = tensor.shape
    body = TYPES[precision.body]
    model = helper.make_graph(
        graph.nodes,
        "linear",
        [helper.make_tensor_value_info("x", body, [1, "rows", columns])],
        [helper.make_tensor_value_info(out, body, [1, "rows", rows])],
        graph.initializers,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(model, opset_imports=opsets, ir_version=IR_VERSION), weights


def run_linear(
    checkpoint: Checkpoint, tensor: PackedWeight, x: NDArray[Any], precision: Precision = EXACT, **options: Any
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """x [rows, in] times the weight, and what the manifest says of it."""
    model, weights = build_linear(checkpoint, tensor, precision, **options)
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), session_options, providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": x[None].astype(precision.body)})[0][0]
    return y.astype(np.float64), weights.quantized[0]
