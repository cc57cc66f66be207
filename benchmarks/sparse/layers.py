"""Some layers' attention over long filled caches, as one session runs them in a step graph.

Every layer is SelectPages and PrefixBlockAttention with caches and state of its own, the state bound in place. All of
them read the same queries; caches of equal content lie in different memory.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from dlm_edge import kernels
from dlm_edge.kernels.prefix_block_attention import sparse_function
from dlm_edge.kernels.select_pages import function as select_function
from dlm_edge.kernels.select_pages.reference import DENSE_KEEP, Policy
from dlm_edge.runtime.layouts import CacheShape, PageBounds, open_layout

Array = NDArray[Any]
OPSET = 24
OVERLOADS = {"kv-fp32": "sparse", "kv-fp16": "sparse_fp16", "kv-int8": "int8", "kv-int4": "int4"}
CHUNK = 1024  # tokens stored at once
SHARED = ("q", "k", "v", "start", "cache_len", "attn_block", "policy", "drift")
SELECT_INPUTS = ("page_low", "page_high", "page_scale", "q_last", "q_stored", "masses")
STATE_NAMES = {"new_q_last": "q_last", "new_q_stored": "q_stored", "new_prefix_out": "prefix_out",
               "new_prefix_lse": "prefix_lse", "new_masses": "masses"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StepShape:
    n_heads: int
    n_kv: int
    dim: int
    rows: int
    prefix: int
    page: int

    @property
    def slots(self) -> int:
        return -(-(self.prefix + 256) // self.page)


class Layers:
    """`count` layers over caches of one layout; `stats` and `out` are those of the first one."""

    def __init__(self, layout: str, shape: StepShape, count: int, threads: int) -> None:
        self.shape, self.count = shape, count
        rng = np.random.default_rng(0)
        window = (1, shape.n_kv, shape.rows, shape.dim)
        first, self.bytes_per_page, self.bounds_bytes = filled(layout, shape, rng)
        state = (1, shape.n_heads, shape.rows, shape.dim)
        first |= {name: np.zeros(state, np.float32) for name in ("q_last", "q_stored", "prefix_out")}
        first |= {"prefix_lse": np.zeros(state[:3], np.float32), "masses": np.zeros((1, shape.n_kv, shape.slots), "f4")}
        self.inputs: dict[str, Array] = {
            "q": rng.standard_normal(state, np.float32),
            "k": rng.standard_normal(window, np.float32),
            "v": rng.standard_normal(window, np.float32),
            "start": np.array([shape.prefix], np.int64),
            "cache_len": np.array([shape.prefix], np.int64),
            "attn_block": np.array([shape.rows], np.int64),
            "policy": np.zeros(9, np.int64),
            "drift": np.array([np.inf], np.float32),
        }
        for layer in range(count):
            self.inputs |= {f"{name}_{layer}": array.copy() if layer else array for name, array in first.items()}
        self.stats = np.zeros(4, np.float32)
        self.out = np.empty((1, shape.rows, shape.n_heads * shape.dim), np.float32)
        self.outs = [self.out, *(np.empty_like(self.out) for _ in range(1, count))]
        self.session = open_session(self._model(OVERLOADS[layout]), threads, native=True)
        self.binding = self.session.io_binding()
        self._bind()

    def _model(self, overload: str) -> bytes:
        nodes = []
        for layer in range(self.count):

            def of(names: list[str], layer: int = layer) -> list[str]:
                return [name if name in SHARED else f"{name}_{layer}" for name in names]

            select = ["q", *SELECT_INPUTS, "start", "cache_len", "policy", "drift"]
            chosen = ["active", "pages", "new_q_last", "new_q_stored", "stats"]
            attend = of(list(sparse_function.inputs_of(overload)))
            made = of(["out", "new_prefix_out", "new_prefix_lse", "new_masses"])
            nodes += [select_function.node(of(select), of(chosen)), sparse_function.node(overload, attend, made)]
        functions = [select_function.function_proto(), sparse_function.function_proto(overload)]
        outputs = [f"{name}_{layer}" for layer in range(self.count) for name in ("out", "stats", *STATE_NAMES)]
        return make_model(nodes, self.inputs, outputs, functions)

    def _bind(self) -> None:
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in self.inputs.items()}
        for name, value in values.items():
            self.binding.bind_ortvalue_input(name, value)
        for layer, out in enumerate(self.outs):
            for output, name in STATE_NAMES.items():
                self.binding.bind_ortvalue_output(f"{output}_{layer}", values[f"{name}_{layer}"])
            self.binding.bind_output(f"out_{layer}", "cpu", 0, np.float32, out.shape, out.ctypes.data)
            self.binding.bind_output(f"stats_{layer}", "cpu", 0, np.float32, [4], self.stats.ctypes.data)

    def run(self, policy: Policy) -> None:
        self.inputs["policy"][:] = astuple(policy)
        self.session.run_with_iobinding(self.binding)

    def prepare(self) -> None:
        """A measured first step, and queries that have moved a little since, in other rows more than in most."""
        self.run(Policy(mode=DENSE_KEEP, page_size=self.shape.page))
        moved = np.random.default_rng(1).standard_normal(self.inputs["q"].shape, np.float32)
        moved *= np.where(np.arange(self.shape.rows) % 3 == 0, 0.3, 0.01)[:, None].astype(np.float32)
        self.inputs["q"] += moved


def filled(layout: str, shape: StepShape, rng: np.random.Generator) -> tuple[dict[str, Array], float, float]:
    """Arrays of a cache and its page bounds, bytes of one page of one K/V head, bytes of all bounds."""
    of_cache = CacheShape(1, shape.n_kv, shape.dim, shape.n_heads * shape.dim)
    cache = open_layout(layout, of_cache, shape.slots * shape.page)
    bounds = PageBounds(of_cache, shape.slots * shape.page, shape.page)
    for start in range(0, shape.prefix, CHUNK):
        size = (shape.n_kv, min(CHUNK, shape.prefix - start), shape.dim)
        k, v = (rng.standard_normal(size, np.float32) for _ in range(2))
        cache.append(0, start, k, v)
        bounds.append(0, start, k)
    per_page = cache.bytes_per_token * shape.page / shape.n_kv
    return {**cache.buffers(0), **bounds.buffers(0)}, per_page, bounds.bytes_per_token * shape.prefix


def make_model(
    nodes: list[onnx.NodeProto], inputs: dict[str, Any], outputs: list[str], functions: list[onnx.FunctionProto]
) -> bytes:
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(kernels.DOMAIN, kernels.OPERATOR_VERSION)]
    graph = helper.make_graph(nodes, "attention", values, results)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11, functions=functions)
    return bytes(model.SerializeToString())


def open_session(model: bytes, threads: int, *, native: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if native and not kernels.register(options):
        raise SystemExit("the native library is not built; python setup.py build_ext --inplace")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
