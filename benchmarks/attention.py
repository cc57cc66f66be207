"""Time PrefixBlockAttention (native kernel, ONNX function) against ONNX Runtime's own Attention operator.

    python benchmarks/attention.py [--threads 2] [--repeats 15] [--simd avx2] [--json result.json]

Every backend runs in the same round, one after the other, so that a busy machine slows all of them; numbers are
medians over the rounds, ratios are medians of the ratios within a round. ONNX Runtime's operator gets its
fastest correct form: keys and values already joined in one tensor, no mask where everything is visible,
otherwise the faster of a bool and a float mask. Its output is [n_heads, q_len, head_dim]: the transpose that
the output projection still needs is not charged to it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from dlm_edge import kernels
from dlm_edge.kernels.prefix_block_attention import function

OPSET = 24
AGREEMENT = 1e-5  # both are float32; a larger difference means that they do not compute the same thing
HEADS = [(12, 2, 128), (16, 8, 128), (32, 8, 128), (4, 2, 64), (16, 16, 64)]  # n_heads, n_kv_heads, head_dim


@dataclass(frozen=True)
class Shape:
    kind: str
    n_heads: int
    n_kv_heads: int
    head_dim: int
    q_len: int
    cache_len: int
    attn_block: int


def shapes() -> list[Shape]:
    steps = [
        Shape("step", *heads, q_len, cache_len, q_len)
        for heads in HEADS
        for q_len, cache_len in ((16, 64), (16, 512), (16, 4096), (32, 256), (32, 1024), (32, 4096), (64, 1024))
    ]
    prefills = [Shape("prefill", *heads, q_len, 0, 32) for heads in HEADS for q_len in (256, 512, 1024)]
    return steps + prefills


def make_inputs(shape: Shape) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def normal(heads: int, length: int) -> np.ndarray:
        return rng.standard_normal((1, heads, length, shape.head_dim), dtype=np.float32)

    n_kv, capacity = shape.n_kv_heads, shape.cache_len + shape.q_len
    integers = {"start": shape.cache_len, "cache_len": shape.cache_len, "attn_block": shape.attn_block}
    return {
        "q": normal(shape.n_heads, shape.q_len),
        "k": normal(n_kv, shape.q_len),
        "v": normal(n_kv, shape.q_len),
        "k_cache": normal(n_kv, capacity),
        "v_cache": normal(n_kv, capacity),
        **{name: np.array([value], np.int64) for name, value in integers.items()},
    }


def joined_inputs(shape: Shape, inputs: dict[str, np.ndarray], mask_type: type | None) -> dict[str, np.ndarray]:
    cached = slice(0, shape.cache_len)
    joined = {"q": inputs["q"]}
    for name in ("k", "v"):
        joined[name] = np.concatenate([inputs[f"{name}_cache"][:, :, cached], inputs[name]], axis=2)
    if mask_type is not None:
        keys = np.arange(shape.cache_len + shape.q_len)
        visible = keys // shape.attn_block <= keys[shape.cache_len :, None] // shape.attn_block
        joined["mask"] = visible if mask_type is np.bool_ else np.where(visible, 0, -np.inf).astype(np.float32)
    return joined


def model_of(node: onnx.NodeProto, inputs: dict[str, np.ndarray], functions: list[onnx.FunctionProto]) -> bytes:
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(kernels.DOMAIN, kernels.OPERATOR_VERSION)]
    graph = helper.make_graph([node], "attention", values, [output])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11, functions=functions)
    return model.SerializeToString()


def runner(model: bytes, inputs: dict[str, np.ndarray], threads: int, *, native: bool) -> Callable[[], np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # A pool that spins while another one is measured would take its processors.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if native and not kernels.register(options):
        raise SystemExit("the native library is not built; python setup.py build_ext --inplace")
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
    return lambda: session.run_with_ort_values(["out"], values)[0].numpy()


def backends(shape: Shape, threads: int) -> dict[str, Callable[[], np.ndarray]]:
    inputs = make_inputs(shape)
    ours = model_of(function.node(list(inputs), "out"), inputs, [function.function_proto(OPSET)])
    found = {
        "native": runner(ours, inputs, threads, native=True),
        "function": runner(ours, inputs, threads, native=False),
    }
    for label, mask_type in (
        (("ort", None),) if shape.kind == "step" else (("ort_bool", np.bool_), ("ort_float", np.float32))
    ):
        joined = joined_inputs(shape, inputs, mask_type)
        model = model_of(helper.make_node("Attention", list(joined), ["out"]), joined, [])
        found[label] = runner(model, joined, threads, native=False)
    return found


def check_agreement(runs: dict[str, Callable[[], np.ndarray]]) -> None:
    native = runs["native"]()[0]
    for name, run in runs.items():
        out = run()[0]
        if name.startswith("ort"):
            out = out.swapaxes(0, 1).reshape(native.shape)
        difference = float(np.abs(out - native).max())
        if not difference <= AGREEMENT:
            raise SystemExit(f"{name} and native differ by {difference}")


def measure(shape: Shape, threads: int, repeats: int) -> dict[str, object]:
    runs = backends(shape, threads)
    check_agreement(runs)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            run()  # the caches are this backend's own again
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    best_ort = min((name for name in runs if name.startswith("ort")), key=lambda n: statistics.median(times[n]))
    row: dict[str, object] = asdict(shape)
    for name in ("native", best_ort, "function"):
        label = name.split("_")[0]
        row[f"{label}_ms"] = statistics.median(times[name]) * 1e3
        row[f"native_over_{label}"] = statistics.median(
            n / t for n, t in zip(times["native"], times[name], strict=True)
        )
    visible = visible_pairs(shape)
    row["native_gflops"] = 4e-9 * shape.n_heads * shape.head_dim * visible / statistics.median(times["native"])
    return row


def visible_pairs(shape: Shape) -> int:
    queries = np.arange(shape.cache_len, shape.cache_len + shape.q_len)
    return int(np.minimum((queries // shape.attn_block + 1) * shape.attn_block, queries[-1] + 1).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--simd", choices=["avx512", "avx2", "portable"], help="force a vector width of the native kernel"
    )
    parser.add_argument("--kind", choices=["step", "prefill"], help="only these shapes")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    if args.simd and not kernels.set_simd(args.simd):
        raise SystemExit(f"{args.simd} is not available here")

    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, onnxruntime {ort.__version__}, "
        f"{args.threads} threads, {kernels.simd()}, median of {args.repeats}"
    )
    header = f"{'':8}{'heads':>6}{'kv':>4}{'dim':>5}{'q_len':>6}{'cache':>6}{'native ms':>11}{'ort ms':>9}"
    print(header + f"{'function ms':>13}{'GFLOP/s':>9}{'native/ort':>12}{'native/function':>17}")
    rows = []
    for shape in shapes():
        if args.kind and shape.kind != args.kind:
            continue
        row = measure(shape, args.threads, args.repeats)
        rows.append(row)
        print(
            f"{shape.kind:8}{shape.n_heads:6}{shape.n_kv_heads:4}{shape.head_dim:5}{shape.q_len:6}{shape.cache_len:6}"
            f"{row['native_ms']:11.3f}{row['ort_ms']:9.3f}{row['function_ms']:13.3f}{row['native_gflops']:9.0f}"
            f"{row['native_over_ort']:12.2f}{row['native_over_function']:17.2f}",
            flush=True,
        )
    if args.json:
        args.json.write_text(
            json.dumps({"simd": kernels.simd(), "threads": args.threads, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
