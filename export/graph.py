"""The step graph: one denoising step of a window over shared caches, for every family that ModelSpec describes.

    input_ids [B, W], start [1], cache_len [1], attn_block [1], logit_rows [R], policy [layers, 9], drift [1],
    where codes lie in two planes also planes [1]: how many of them are read,
    and per layer: the caches of the layout (cache_nodes/), the page bounds page_low, page_high, page_scale, and the state of
    sparse attention q_last, q_stored, prefix_out, prefix_lse, masses
 -> logits [R, vocab], and per layer: written caches and new state with the suffix _out, what the caller is to store,
    stats [4]

B copies of the window are fillings of the same positions, which see the caches and not each other. logit_rows count
through all of them: row i of copy b is b * W + i. What is written, of caches and of state, is of copy 0. More than one
copy attend afresh in all their rows; float32 graphs that store keys and values themselves take them, where the native
operators run. Everywhere else B is 1.

Built node by node (no tracing), so the same checkpoint gives the same bytes. A caller that binds each cache and state
output to its input gets them written in place, without a copy. With the layout none the window is the whole sequence:
start, cache_len, attn_block, drift and all of the above state are left out, and each layer has a `pattern`. Shapes and
meaning of the state: kernels/select_pages/reference.py, kernels/prefix_block_attention/reference.py and
kernels/pattern_attention/reference.py.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.export.cache_nodes import Rematerialised, Tensors, WholeSequence, Window, cache_nodes
from dlm_edge.export.cache_nodes.contract import copies_of
from dlm_edge.export.embedding import embedding, head
from dlm_edge.export.external_data import TYPES, ExternalData
from dlm_edge.export.feed_forward import feed_forward
from dlm_edge.export.linear import WeightNodes
from dlm_edge.export.nodes import IR_VERSION, GraphBuilder, opset_imports
from dlm_edge.export.profiles import Precision
from dlm_edge.families.spec import ModelSpec
from dlm_edge.kernels import DOMAIN
from dlm_edge.kernels.select_pages.function import function_proto as select_pages_function

N_NUMBERS = 9  # of the input `policy`
BOUNDS = ("page_low", "page_high", "page_scale")  # written by the caller alone


class StepGraph:
    """Builds the graph of one checkpoint; `weights.quantized` lists its packed weights afterwards."""

    def __init__(
        self, checkpoint: Checkpoint, data: ExternalData, precision: Precision, layout: str = "kv-fp32"
    ) -> None:
        self.spec: ModelSpec = checkpoint.spec
        self.precision = precision
        self.body: int = TYPES[precision.body]
        self.cache = cache_nodes(layout, self.spec)
        self.is_whole = isinstance(self.cache, WholeSequence)  # the window, which is the sequence
        self.copies = copies_of(self.cache.takes_copies, self.body)
        self.graph = GraphBuilder(data, precision.body)
        self.weights = WeightNodes(checkpoint, self.graph, precision)
        self.projected: dict[str, str] = {}  # q, k and v of the present layer, where they are one product

    def build(self) -> onnx.ModelProto:
        self.cos, self.sin = self.for_copies(*self.rope(self.positions()))
        x = embedding(self.weights, "input_ids")
        for i in range(self.spec.n_layers):
            self.graph.scope = f"layers.{i}."
            x = self.layer(i, x)
        self.graph.scope = ""
        self.logits(x)
        return self.model()

    def positions(self) -> str:
        """int64 [W]: absolute positions of the window."""
        g = self.graph
        shape = g.add("Shape", ["input_ids"], "ids_shape", start=1, end=2)
        length = g.add("Squeeze", [shape], "window_length")
        zero, one = g.add("Squeeze", [g.integers(0)], "zero"), g.add("Squeeze", [g.integers(1)], "one")
        offsets = g.add("Range", [zero, length, one], "window_offsets")
        return offsets if self.is_whole else g.add("Add", [offsets, "start"], "positions")

    def rope(self, positions: str, scope: str = "") -> tuple[str, str]:
        """cos and sin [1, rows, head_dim / 2] of int64 positions [rows], in float32 until the last cast."""
        g, spec = self.graph, self.spec
        half = np.arange(0, spec.head_dim, 2, dtype=np.float32) / np.float32(spec.head_dim)
        frequencies = g.shared("rope_frequencies", (np.float32(spec.rope_theta) ** -half)[None, None])
        floats = g.add("Cast", [positions], scope + "positions_float", to=TensorProto.FLOAT)
        column = g.add("Unsqueeze", [floats, g.integers(0, 2)], scope + "positions_column")
        angles = g.add("Mul", [column, frequencies], scope + "rope_angles")
        cos, sin = g.add("Cos", [angles], scope + "rope_cos_float"), g.add("Sin", [angles], scope + "rope_sin_float")
        return g.add("Cast", [cos], scope + "rope_cos", to=self.body), g.add(
            "Cast", [sin], scope + "rope_sin", to=self.body
        )

    def for_copies(self, cos: str, sin: str) -> tuple[str, str]:
        """[B, W, head_dim / 2]: RotaryEmbedding wants the same numbers once for every copy."""
        g = self.graph
        if self.copies == 1:
            return cos, sin
        shape = [g.add("Shape", ["input_ids"], "n_copies", start=0, end=1), g.integers(1, 1)]
        by_copy = g.add("Concat", shape, "rope_copies_shape", axis=0)
        return g.add("Expand", [cos, by_copy], "rope_cos_copies"), g.add("Expand", [sin, by_copy], "rope_sin_copies")

    def window_rope(self) -> tuple[str, str]:
        return self.cos, self.sin

    def layer(self, i: int, x: str) -> str:
        g = self.graph
        attended = self.attention(i, self.norm(x, f"layers.{i}.attn_norm.weight", "attn_norm"))
        x = g.add("Add", [x, attended], "after_attention")
        h = self.norm(x, f"layers.{i}.mlp_norm.weight", "mlp_norm")
        return g.add("Add", [x, feed_forward(self.weights, i, h)], "after_mlp")

    def attention(self, i: int, h: str) -> str:
        g = self.graph
        self.project_at_once(i, h)
        q = self.rotated(self.heads(i, self.project(i, h, "q"), "q"), self.cos, self.sin, "q_rope")
        policy = g.add("Gather", ["policy", g.index(i)], "policy", axis=0)
        chosen = ("", "") if self.is_whole else self.select(i, q, policy)
        out = self.cache.attend(self, Window(i, q, h), *chosen)
        return self.weights.linear(out, f"layers.{i}.o.weight", "o")

    def select(self, i: int, q: str, policy: str) -> tuple[str, str]:
        """The rows that attend afresh, and the pages of the prefix that they read."""
        g = self.graph
        q_float = q if self.body == TensorProto.FLOAT else g.add("Cast", [q], "q_float", to=TensorProto.FLOAT)
        state = [f"{name}.{i}" for name in (*BOUNDS, "q_last", "q_stored", "masses")]
        pages = f"layers.{i}.pages"
        active = g.add(
            "SelectPages",
            [q_float, *state, "start", "cache_len", policy, "drift"],
            "active",
            more=[pages, f"q_last_out.{i}", f"q_stored_out.{i}", f"stats.{i}"],
            domain=DOMAIN,
        )
        return active, pages

    def project_at_once(self, i: int, h: str) -> None:
        """q, k and v of the window as one product with their biases, where their weights have one form."""
        g, spec = self.graph, self.spec
        if not self.cache.projects_window_only:
            return
        roles = [f"layers.{i}.{kind}.weight" for kind in "qkv"]
        biases = [role.replace("weight", "bias") for role in roles] if spec.qkv_bias else []
        together = self.weights.side_by_side(h, roles, "qkv", biases)
        if together is not None:
            self.projected = {kind: f"layers.{i}.{kind}" for kind in "qkv"}
            widths = g.integers(spec.q_width, spec.kv_width, spec.kv_width)
            g.add("Split", [together, widths], "q", more=[self.projected["k"], self.projected["v"]], axis=-1)

    def project(self, i: int, h: str, kind: str) -> str:
        """[B, rows, heads * head_dim], before the bias unless it is one of `projected`."""
        done = f"layers.{i}.{kind}"
        return done if done in self.projected.values() else self.weights.linear(h, f"layers.{i}.{kind}.weight", kind)

    def heads(self, i: int, projected: str, kind: str) -> str:
        """Bias, then [B, heads, rows, head_dim], normalised per head where the family does so."""
        g, spec = self.graph, self.spec
        count = spec.n_heads if kind == "q" else spec.n_kv_heads
        x = projected
        if spec.qkv_bias and x not in self.projected.values():
            x = g.add("Add", [x, self.weights.plain(f"layers.{i}.{kind}.bias")], f"{kind}_biased")
        x = g.add("Reshape", [x, g.integers(0, 0, count, spec.head_dim)], f"{kind}_split")
        if spec.qk_norm and kind != "v":
            x = self.norm(x, f"layers.{i}.{kind}_norm.weight", f"{kind}_norm")
        return g.add("Transpose", [x], f"{kind}_heads", perm=[0, 2, 1, 3])

    def weight(self, i: int, kind: str) -> NDArray[np.float32]:
        return self.weights.checkpoint.load(f"layers.{i}.{kind}.weight").astype(np.float32)

    def rotated(self, x: str, cos: str, sin: str, name: str) -> str:
        return self.graph.add("RotaryEmbedding", [x, cos, sin], name)

    def norm(self, x: str, role: str, name: str) -> str:
        inputs = [x, self.weights.plain(role)]
        return self.graph.add("RMSNormalization", inputs, name, axis=-1, epsilon=self.spec.norm_eps)

    def logits(self, x: str) -> None:
        """Only the rows asked for go through the head; scores are float32 whatever the body is."""
        g = self.graph
        rows = g.add("Reshape", [x, g.integers(-1, self.spec.hidden_size)], "hidden_rows")
        rows = g.add("Gather", [rows, "logit_rows"], "logit_hidden_rows", axis=0)
        rows = self.norm(rows, "final_norm.weight", "final_norm")
        scores = head(self.weights, rows)
        if self.body == TensorProto.FLOAT:  # a cast would copy them
            g.rename_last(scores, "logits")
        else:
            g.add("Cast", [scores], "logits", to=TensorProto.FLOAT)

    def model(self) -> onnx.ModelProto:
        numbers = () if self.is_whole else ("start", "cache_len", "attn_block", *self.cache.numbers)
        inputs = [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, [self.copies, "window"]),
            *(helper.make_tensor_value_info(n, TensorProto.INT64, [1]) for n in numbers),
            helper.make_tensor_value_info("logit_rows", TensorProto.INT64, ["rows"]),
            helper.make_tensor_value_info("policy", TensorProto.INT64, [self.spec.n_layers, N_NUMBERS]),
            *([] if self.is_whole else [helper.make_tensor_value_info("drift", TensorProto.FLOAT, [1])]),
        ]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", self.spec.vocab_size])]
        for i in range(self.spec.n_layers):
            cache, state = self.cache.inputs(i, self.spec, self.body), self.state()
            written = {n: t for n, t in state.items() if n not in BOUNDS} | {n: cache[n] for n in self.cache.written()}
            inputs += [tensor(f"{name}.{i}", of) for name, of in (cache | state).items()]
            outputs += [tensor(f"{name}_out.{i}", of) for name, of in written.items() if self.keeps(name)]
            outputs += [tensor(f"{name}.{i}", of) for name, of in self.cache.stored(i, self.spec, self.body).items()]
            outputs.append(tensor(f"stats.{i}", (TensorProto.FLOAT, [4])))
        graph = helper.make_graph(self.graph.nodes, "step", inputs, outputs, self.graph.initializers)
        return helper.make_model(
            graph,
            opset_imports=opset_imports(),
            ir_version=IR_VERSION,
            functions=[
                *([] if self.is_whole else [select_pages_function()]),
                *self.cache.functions(self.spec.n_layers),
                *self.graph.functions.values(),
            ],
            producer_name="dlm-edge",
        )

    def state(self) -> Tensors:
        """What sparse attention keeps of each layer between runs; the caller owns the memory."""
        real, spec = TensorProto.FLOAT, self.spec
        if self.is_whole:
            return {"pattern": (TensorProto.UINT8, [spec.n_heads, "slots", "slots"])}
        heads, kv_heads, dim = spec.n_heads, spec.n_kv_heads, spec.head_dim
        return {
            "page_low": (TensorProto.INT8, [1, kv_heads, "slots", dim]),
            "page_high": (TensorProto.INT8, [1, kv_heads, "slots", dim]),
            "page_scale": (real, [1, kv_heads, "slots"]),
            "q_last": (real, [1, heads, "state_rows", dim]),
            "q_stored": (real, [1, heads, "state_rows", dim]),
            "prefix_out": (real, [1, heads, "state_rows", dim]),
            "prefix_lse": (real, [1, heads, "state_rows"]),
            "masses": (real, [1, kv_heads, "slots"]),
        }

    def keeps(self, name: str) -> bool:
        """Attention over rematerialised keys has no pages of its own to measure."""
        return name != "masses" or not isinstance(self.cache, Rematerialised)


def tensor(name: str, of: tuple[int, list[int | str | None]]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, *of)
