"""Time one layer's attention of a denoising step over long prefixes: dense, page-sparse, quantized, on the CPU.

    python benchmarks/attention_speed.py [--threads 2] [--repeats 9] [--json attention_speed.json]

Head shapes of 8B models. Every setting runs in the same round, and a buffer larger than the last-level cache is
written before each run, as other layers would do it. Medians; ratios are medians of the ratios within a round. `ort` is
ONNX Runtime's Attention over keys and values that are joined already. `losa` is a steady step: 5 of 16 rows attend
afresh, to the pages that the block's first step measured; `quest` chooses pages for every row by their bounds.
`floor` is the time that reading the touched bytes takes at the bandwidth of a copy measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from dlm_edge import kernels
from dlm_edge.kernels.prefix_block_attention import sparse_function
from dlm_edge.kernels.select_pages import function as select_function
from dlm_edge.kernels.select_pages.reference import DENSE, DENSE_KEEP, SELECT, SELECT_ROWS, Policy
from dlm_edge.runtime.layouts import CacheShape, PageBounds, open_layout

OPSET = 24
HEADS = {"SDAR-8B": (32, 8, 128), "LLaDA-8B": (32, 32, 128)}
PREFIXES = (1024, 4096, 8192, 16384, 32768)
LAYOUTS = {"kv-fp32": "sparse", "kv-fp16": "sparse_fp16", "kv-int8": "int8", "kv-int4": "int4"}
ROWS, ACTIVE, PAGE = 16, 5, 16
FLUSH_BYTES = 256 << 20
SELECT_INPUTS = ("page_low", "page_high", "page_scale", "q_last", "q_stored", "masses")
STATE_NAMES = {"new_q_last": "q_last", "new_q_stored": "q_stored", "new_prefix_out": "prefix_out",
               "new_prefix_lse": "prefix_lse", "new_masses": "masses"}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    name: str
    layout: str
    mode: int
    budget: int = 0  # tokens

    def policy(self) -> list[int]:
        n_active = ACTIVE if self.mode == SELECT_ROWS else ROWS
        pages = max(self.budget // PAGE, 1)
        return list(astuple(Policy(mode=self.mode, n_pages=pages, n_active=n_active, page_size=PAGE)))


def settings(prefix: int) -> list[Setting]:
    found = [Setting("dense", "kv-fp32", DENSE)]
    for share in (16, 32):
        found.append(Setting(f"losa 1/{share}", "kv-fp32", SELECT_ROWS, prefix // share))
    found.append(Setting("quest 1/16", "kv-fp32", SELECT, prefix // 16))
    for layout in ("kv-fp16", "kv-int8", "kv-int4"):
        found.append(Setting(f"dense {layout}", layout, DENSE))
        found.append(Setting(f"losa 1/16 {layout}", layout, SELECT_ROWS, prefix // 16))
    return found


class Layer:
    """The two operators of one layer over a filled cache, with their state bound in place."""

    def __init__(self, layout: str, heads: tuple[int, int, int], prefix: int, threads: int) -> None:
        n_heads, n_kv, dim = heads
        rng = np.random.default_rng(0)
        capacity = prefix + 256
        cache = open_layout(layout, CacheShape(1, n_kv, dim, n_heads * dim), capacity)
        bounds = PageBounds(CacheShape(1, n_kv, dim, n_heads * dim), capacity, PAGE)
        for start in range(0, prefix, 1024):
            k, v = (rng.standard_normal((n_kv, min(1024, prefix - start), dim), np.float32) for _ in range(2))
            cache.append(0, start, k, v)
            bounds.append(0, start, k)
        slots = capacity // PAGE
        self.inputs: dict[str, np.ndarray[Any, Any]] = {
            "q": rng.standard_normal((1, n_heads, ROWS, dim), np.float32),
            "k": rng.standard_normal((1, n_kv, ROWS, dim), np.float32),
            "v": rng.standard_normal((1, n_kv, ROWS, dim), np.float32),
            **cache.buffers(0),
            **bounds.buffers(0),
            "q_last": np.zeros((1, n_heads, ROWS, dim), np.float32),
            "q_stored": np.zeros((1, n_heads, ROWS, dim), np.float32),
            "prefix_out": np.zeros((1, n_heads, ROWS, dim), np.float32),
            "prefix_lse": np.zeros((1, n_heads, ROWS), np.float32),
            "masses": np.zeros((1, n_kv, slots), np.float32),
            "start": np.array([prefix], np.int64),
            "cache_len": np.array([prefix], np.int64),
            "attn_block": np.array([ROWS], np.int64),
            "policy": np.zeros(9, np.int64),
            "drift": np.array([np.inf], np.float32),
        }
        self.bytes_per_page = cache.bytes_per_token * PAGE / n_kv
        self.bounds_bytes = bounds.bytes_per_token * prefix
        self.stats = np.zeros(4, np.float32)
        self.out = np.empty((1, ROWS, n_heads * dim), np.float32)
        self.session = open_session(self.model(LAYOUTS[layout]), threads, native=True)
        self.binding = self.session.io_binding()
        for name, array in self.inputs.items():
            value = ort.OrtValue.ortvalue_from_numpy(array)
            self.binding.bind_ortvalue_input(name, value)
            for output in (o for o, i in STATE_NAMES.items() if i == name):
                self.binding.bind_ortvalue_output(output, value)
        self.binding.bind_output("out", "cpu", 0, np.float32, self.out.shape, self.out.ctypes.data)
        self.binding.bind_output("stats", "cpu", 0, np.float32, [4], self.stats.ctypes.data)

    def model(self, overload: str) -> bytes:
        select = ["q", *SELECT_INPUTS, "start", "cache_len", "policy", "drift"]
        chosen = ["active", "pages", "new_q_last", "new_q_stored", "stats"]
        attend = list(sparse_function.inputs_of(overload))
        nodes = [
            select_function.node(select, chosen),
            sparse_function.node(overload, attend, ["out", "new_prefix_out", "new_prefix_lse", "new_masses"]),
        ]
        functions = [select_function.function_proto(), sparse_function.function_proto(overload)]
        return make_model(nodes, self.inputs, ["out", "stats", *STATE_NAMES], functions)

    def run(self, policy: list[int]) -> None:
        self.inputs["policy"][:] = policy
        self.session.run_with_iobinding(self.binding)

    def prepare(self, setting: Setting) -> None:
        """A measured first step, and queries that have moved a little since, in other rows more than in most."""
        self.run(Setting("", "", DENSE_KEEP).policy())
        moved = np.random.default_rng(1).standard_normal(self.inputs["q"].shape, np.float32)
        moved *= np.where(np.arange(ROWS) % 3 == 0, 0.3, 0.01)[:, None].astype(np.float32)
        self.inputs["q"] += moved

    def touched_bytes(self, setting: Setting) -> float:
        _, pages, valid, bounds = self.stats.tolist()
        return pages * self.bytes_per_page + bounds * self.bounds_bytes


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


def ort_attention(layer: Layer, prefix: int, threads: int) -> Callable[[], None]:
    joined = {"q": layer.inputs["q"]}
    for name in ("k", "v"):
        joined[name] = np.concatenate([layer.inputs[f"{name}_cache"][:, :, :prefix], layer.inputs[name]], 2)
    session = open_session(
        make_model([helper.make_node("Attention", list(joined), ["out"])], joined, ["out"], []), threads, native=False
    )
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in joined.items()}
    out = session.run_with_ort_values(["out"], values)[0].numpy()
    layer.run(Setting("", "", DENSE).policy())
    difference = float(np.abs(out.swapaxes(1, 2).reshape(layer.out.shape) - layer.out).max())
    if not difference <= 1e-5:
        raise SystemExit(f"ONNX Runtime's Attention and ours differ by {difference}")
    return lambda: session.run_with_ort_values(["out"], values)


def bandwidth(threads: int) -> float:
    """Bytes a second of a copy by `threads` threads, reading and writing counted: the median of seven."""
    parts = [(np.zeros(64 << 20, np.uint8), np.ones(64 << 20, np.uint8)) for _ in range(threads)]
    seconds = []
    for _ in range(7):
        workers = [threading.Thread(target=np.copyto, args=part) for part in parts]
        begin = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds.append(time.perf_counter() - begin)
    return 2 * threads * (64 << 20) / statistics.median(seconds)


def measure(heads: str, prefix: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    layers = {name: Layer(name, HEADS[heads], prefix, args.threads) for name in LAYOUTS}
    runs: dict[str, Callable[[], Any]] = {"ort": ort_attention(layers["kv-fp32"], prefix, args.threads)}
    chosen = settings(prefix)
    flush, times = np.zeros(FLUSH_BYTES, np.uint8), dict[str, list[float]]()
    touched: dict[str, float] = {}
    speed = bandwidth(args.threads)
    for _ in range(args.repeats):
        for name, run in runs.items():
            flush += 1
            begin = time.perf_counter()
            run()
            times.setdefault(name, []).append(time.perf_counter() - begin)
        for setting in chosen:
            layer = layers[setting.layout]
            layer.prepare(setting)
            flush += 1
            policy = setting.policy()
            begin = time.perf_counter()
            layer.run(policy)
            times.setdefault(setting.name, []).append(time.perf_counter() - begin)
            touched[setting.name] = layer.touched_bytes(setting)
    rows = []
    for name, seconds in times.items():
        row: dict[str, Any] = {"heads": heads, "prefix": prefix, "name": name, "ms": 1e3 * statistics.median(seconds)}
        row["dense_over_this"] = statistics.median(d / t for d, t in zip(times["dense"], seconds, strict=True))
        if name in touched:
            row |= {"bytes": touched[name], "floor_ms": 1e3 * touched[name] / speed, "bandwidth": speed}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--prefixes", nargs="+", type=int, default=list(PREFIXES))
    parser.add_argument("--simd", choices=["avx512_vnni", "avx512", "avx2", "portable"], help="force a variant")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    if args.simd and not kernels.set_simd(args.simd):
        raise SystemExit(f"{args.simd} is not available here")
    print(f"{platform.machine()}, onnxruntime {ort.__version__}, {args.threads} threads, {kernels.simd()}, "
          f"blocks of {ROWS}, {ACTIVE} active rows, pages of {PAGE}, median of {args.repeats}")  # fmt: skip
    print(f"{'heads':9}{'prefix':>7}  {'':22}{'ms':>9}{'dense/this':>12}{'floor ms':>10}")
    rows = []
    for heads in args.heads:
        for prefix in args.prefixes:
            for row in measure(heads, prefix, args):
                rows.append(row)
                floor = f"{row['floor_ms']:10.3f}" if "floor_ms" in row else ""
                print(
                    f"{heads:9}{prefix:7}  {row['name']:22}{row['ms']:9.3f}{row['dense_over_this']:12.2f}{floor}",
                    flush=True,
                )
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "simd": kernels.simd(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
