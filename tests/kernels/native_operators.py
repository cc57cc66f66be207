"""One-node models of the native operators, without function bodies: what runs is the library or nothing."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from dlm_edge import kernels

ELEMENT_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.int64): TensorProto.INT64,
}
SIMD = ["avx512_vnni", "avx512", "avx2", "portable"]

WINDOW = ("q", "k", "v", "k_cache", "v_cache", "start", "cache_len", "attn_block")
SPARSE = (*WINDOW, "active", "pages", "policy", "prefix_out", "prefix_lse", "masses")
CODES = (*SPARSE, "k_scale", "k_low", "k_tail", "v_scale", "v_low")
SPARSE_OUTPUTS = ("out", "new_prefix_out", "new_prefix_lse", "new_masses")
SELECT = (
    "q", "low", "high", "page_scale", "q_last", "q_stored", "masses", "start", "cache_len", "policy", "drift",
)  # fmt: skip
SELECT_OUTPUTS = ("active", "pages", "new_q_last", "new_q_stored", "stats")
ROWS = ("codes", "scale", "low", "tail", "rows", "cache_len")

Arrays = dict[str, np.ndarray]


def session(operator: str, inputs: Arrays, outputs: tuple[str, ...], *, overload="", threads=2, **attributes):
    """No shapes are declared, so that the kernel sees whatever is passed."""
    of_dtype = {name: helper.make_tensor_value_info(name, ELEMENT_TYPES[a.dtype], None) for name, a in inputs.items()}
    types = dict.fromkeys(("active", "pages", "new_pattern"), TensorProto.UINT8)
    made = [helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), None) for name in outputs]
    node = helper.make_node(operator, list(inputs), outputs, domain=kernels.DOMAIN, overload=overload, **attributes)
    graph = helper.make_graph([node], "one_node", list(of_dtype.values()), made)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(kernels.DOMAIN, kernels.OPERATOR_VERSION)]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    assert kernels.register(options)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_bound(tested: ort.InferenceSession, inputs: Arrays, state: dict[str, str], fresh: Arrays) -> Arrays:
    """Run with every output of `state` in the memory of the input it names, and the arrays of `fresh`, filled with
    NaN or garbage, as the other outputs. Returns copies of all outputs."""
    binding = tested.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
    values |= {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in fresh.items()}
    for name in inputs:
        binding.bind_ortvalue_input(name, values[name])
    outputs = {name: values[state.get(name, name)] for name in [*fresh, *state]}
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    tested.run_with_iobinding(binding)
    return {name: value.numpy().copy() for name, value in outputs.items()}
