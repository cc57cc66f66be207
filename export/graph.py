"""The step graph: one denoising step of a window over shared caches, for every family that ModelSpec describes.

    input_ids [1, W], start [1], cache_len [1], attn_block [1], logit_rows [R], k_cache.i / v_cache.i
 -> logits [R, vocab], k_cache_out.i / v_cache_out.i

Built node by node (no tracing), so the same checkpoint gives the same bytes. Keys and values of the window are
written into the caches at `start`; a caller that binds each cache output to its input gets that without a copy.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.export.external_data import TYPES, ExternalData
from dlm_edge.export.linear import WeightNodes
from dlm_edge.export.n_bits import Precision
from dlm_edge.export.nodes import MICROSOFT, GraphBuilder
from dlm_edge.families.spec import ModelSpec
from dlm_edge.kernels import DOMAIN, OPERATOR_VERSION
from dlm_edge.kernels.prefix_block_attention.function import function_proto

OPSET = 24
IR_VERSION = 11


class StepGraph:
    """Builds the graph of one checkpoint; `weights.quantized` lists its packed weights afterwards."""

    def __init__(self, checkpoint: Checkpoint, data: ExternalData, precision: Precision) -> None:
        self.spec: ModelSpec = checkpoint.spec
        self.precision = precision
        self.graph = GraphBuilder(data, precision.body)
        self.weights = WeightNodes(checkpoint, self.graph, precision)

    def build(self) -> onnx.ModelProto:
        cos, sin = self.rope_tables()
        x = self.weights.embedding("input_ids")
        for i in range(self.spec.n_layers):
            self.graph.scope = f"layers.{i}."
            x = self.layer(i, x, cos, sin)
        self.graph.scope = ""
        self.logits(x)
        return self.model()

    def rope_tables(self) -> tuple[str, str]:
        """cos and sin [1, W, head_dim / 2] of the window's absolute positions, in float32 until the last cast."""
        g, spec = self.graph, self.spec
        half = np.arange(0, spec.head_dim, 2, dtype=np.float32) / np.float32(spec.head_dim)
        frequencies = g.weight("rope_frequencies", (np.float32(spec.rope_theta) ** -half)[None, None])
        shape = g.add("Shape", ["input_ids"], "ids_shape", start=1, end=2)
        length = g.add("Squeeze", [shape], "window_length")
        zero, one = g.add("Squeeze", [g.integers(0)], "zero"), g.add("Squeeze", [g.integers(1)], "one")
        offsets = g.add("Range", [zero, length, one], "window_offsets")
        positions = g.add("Add", [offsets, "start"], "positions")
        positions = g.add("Cast", [positions], "positions_float", to=TensorProto.FLOAT)
        column = g.add("Unsqueeze", [positions, g.integers(0, 2)], "positions_column")
        angles = g.add("Mul", [column, frequencies], "rope_angles")
        cos, sin = g.add("Cos", [angles], "rope_cos_float"), g.add("Sin", [angles], "rope_sin_float")
        body = TYPES[self.precision.body]
        return g.add("Cast", [cos], "rope_cos", to=body), g.add("Cast", [sin], "rope_sin", to=body)

    def layer(self, i: int, x: str, cos: str, sin: str) -> str:
        g = self.graph
        attended = self.attention(i, self.norm(x, f"layers.{i}.attn_norm.weight", "attn_norm"), cos, sin)
        x = g.add("Add", [x, attended], "after_attention")
        h = self.norm(x, f"layers.{i}.mlp_norm.weight", "mlp_norm")
        gate = self.weights.linear(h, f"layers.{i}.gate.weight", "gate")
        up = self.weights.linear(h, f"layers.{i}.up.weight", "up")
        silu = g.add("Mul", [gate, g.add("Sigmoid", [gate], "gate_sigmoid")], "gate_silu")
        h = g.add("Mul", [silu, up], "gated")
        return g.add("Add", [x, self.weights.linear(h, f"layers.{i}.down.weight", "down")], "after_mlp")

    def attention(self, i: int, h: str, cos: str, sin: str) -> str:
        g = self.graph
        q = self.rotated(self.heads(i, h, "q"), cos, sin, "q_rope")
        k = self.rotated(self.heads(i, h, "k"), cos, sin, "k_rope")
        v = self.heads(i, h, "v")
        k_cache = self.cache_write(f"k_cache.{i}", k)
        v_cache = self.cache_write(f"v_cache.{i}", v)
        inputs = [q, k, v, k_cache, v_cache, "start", "cache_len", "attn_block"]
        out = g.add("PrefixBlockAttention", inputs, "attention", domain=DOMAIN, overload="dense")
        return self.weights.linear(out, f"layers.{i}.o.weight", "o")

    def heads(self, i: int, h: str, kind: str) -> str:
        """Projection `kind` as [1, heads, W, head_dim], normalised per head where the family does so."""
        g, spec = self.graph, self.spec
        count = spec.n_heads if kind == "q" else spec.n_kv_heads
        bias = f"layers.{i}.{kind}.bias" if spec.qkv_bias else None
        x = self.weights.linear(h, f"layers.{i}.{kind}.weight", kind, bias)
        x = g.add("Reshape", [x, g.integers(0, 0, count, spec.head_dim)], f"{kind}_split")
        if spec.qk_norm and kind != "v":
            x = self.norm(x, f"layers.{i}.{kind}_norm.weight", f"{kind}_norm")
        return g.add("Transpose", [x], f"{kind}_heads", perm=[0, 2, 1, 3])

    def rotated(self, x: str, cos: str, sin: str, name: str) -> str:
        return self.graph.add("RotaryEmbedding", [x, cos, sin], name)

    def norm(self, x: str, role: str, name: str) -> str:
        inputs = [x, self.weights.plain(role)]
        return self.graph.add("RMSNormalization", inputs, name, axis=-1, epsilon=self.spec.norm_eps)

    def cache_write(self, name: str, new: str) -> str:
        layer, scope = name.split(".")[1], self.graph.scope
        self.graph.scope = ""
        out = self.graph.add("TensorScatter", [name, new, "start"], f"{name.split('.')[0]}_out.{layer}", axis=2)
        self.graph.scope = scope
        return out

    def logits(self, x: str) -> None:
        """Only the rows asked for go through the head; scores are float32 whatever the body is."""
        g = self.graph
        rows = g.add("Gather", [x, "logit_rows"], "logit_hidden", axis=1)
        rows = g.add("Squeeze", [rows, g.integers(0)], "logit_hidden_rows")
        rows = self.norm(rows, "final_norm.weight", "final_norm")
        logits = self.weights.head(rows, self.spec.vocab_size)
        g.add("Cast", [logits], "logits", to=TensorProto.FLOAT)

    def model(self) -> onnx.ModelProto:
        body, spec = TYPES[self.precision.body], self.spec
        inputs = [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "window"]),
            *(helper.make_tensor_value_info(n, TensorProto.INT64, [1]) for n in ("start", "cache_len", "attn_block")),
            helper.make_tensor_value_info("logit_rows", TensorProto.INT64, ["rows"]),
        ]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", spec.vocab_size])]
        cache: list[int | str | None] = [1, spec.n_kv_heads, "capacity", spec.head_dim]
        for i in range(spec.n_layers):
            for kind in ("k", "v"):
                inputs.append(helper.make_tensor_value_info(f"{kind}_cache.{i}", body, cache))
                outputs.append(helper.make_tensor_value_info(f"{kind}_cache_out.{i}", body, cache))
        graph = helper.make_graph(self.graph.nodes, "step", inputs, outputs, self.graph.initializers)
        opsets = [("", OPSET), (MICROSOFT, 1), (DOMAIN, OPERATOR_VERSION)]
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets],
            ir_version=IR_VERSION,
            functions=[function_proto()],
            producer_name="dlm-edge",
        )
