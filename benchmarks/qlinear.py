"""Time QLinear against ONNX Runtime's quantized products, on the CPU.

    python benchmarks/qlinear.py [--threads 1] [--seconds 2] [--simd avx2] [--json qlinear.json]

One-node models over random weights, all of them run in turn in the same rounds. `nbits` is MatMulNBits with
accuracy_level 4, `integer` the nodes of export/int8_linear.py around MatMulInteger (8 bits, one scale for each output),
and `integer_only` that product without them, on bytes: the peak that ONNX Runtime reaches. `q` is QLinear, with bits and
group size as in the name, g0 for one scale for each output. A b behind it, as in q4g128b, is QLinear with row_blocks;
`over_one_scale` compares it with the same setting without. --simd forces a variant of QLinear; ONNX Runtime keeps
its own choice of instructions.

GOP/s count a multiplication and an addition each. With one thread, time is what the processor spent on the calling
thread, so that other programs on the machine take less part in it; with more, it is the clock's.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dlm_edge import kernels
from dlm_edge.kernels.qlinear import function
from dlm_edge.kernels.qlinear.inputs import linear_inputs
from dlm_edge.machine import processor

SHAPES = ["1536x1536", "2048x2048", "4096x4096", "1536x8960", "8960x1536"]
SETTINGS = ["nbits4g128", "nbits4g32", "nbits8g128", "integer", "integer_only", "q4g128", "q4g32", "q8g0", "q2g128"]
MICROSOFT = "com.microsoft"
Arrays = dict[str, NDArray[Any]]


def open_session(nodes: list[onnx.NodeProto], constants: Arrays, threads: int, *, of_bytes: bool = False) -> Any:
    taken, made = (TensorProto.UINT8, TensorProto.INT32) if of_bytes else (TensorProto.FLOAT, TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", taken, None)],
        [helper.make_tensor_value_info("y", made, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    versions = {"": 21, MICROSOFT: 1, kernels.DOMAIN: kernels.OPERATOR_VERSION}
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*v) for v in versions.items()], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    # The threads of the other sessions would spin on the processors of the one that is timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not kernels.register(options):
        raise SystemExit("the native library is not built")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def nbits(bits: int, group: int, k: int, n: int, threads: int) -> Any:
    rng = np.random.default_rng(0)
    constants = {
        "codes": rng.integers(0, 256, (n, k // group, group * bits // 8), dtype=np.uint8),
        "scales": rng.random((n, k // group), dtype=np.float32),
    }
    node = helper.make_node(
        "MatMulNBits", ["x", *constants], ["y"], domain=MICROSOFT,
        K=k, N=n, bits=bits, block_size=group, accuracy_level=4,
    )  # fmt: skip
    return open_session([node], constants, threads)


def integer(k: int, n: int, threads: int, *, only: bool) -> Any:
    rng = np.random.default_rng(0)
    weight = rng.integers(-128, 128, (k, n)).astype(np.int8)
    constants: Arrays = {"weight": weight, "row_zero": np.array(128, np.uint8)}
    if only:
        node = helper.make_node("MatMulInteger", ["x", "weight", "row_zero"], ["y"])
        return open_session([node], constants, threads, of_bytes=True)
    constants |= {
        "last": np.array([-1]), "largest": np.float32(127), "smallest": np.finfo(np.float32).tiny,
        "shift": np.float32(128), "scales": rng.random(n, dtype=np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Abs", ["x"], ["magnitude"]),
        helper.make_node("ReduceMax", ["magnitude", "last"], ["peak"], keepdims=1),
        helper.make_node("Div", ["peak", "largest"], ["step"]),
        helper.make_node("Max", ["step", "smallest"], ["scale"]),
        helper.make_node("Div", ["x", "scale"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("Add", ["rounded", "shift"], ["shifted"]),
        helper.make_node("Cast", ["shifted"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("MatMulInteger", ["bytes", "weight", "row_zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["unscaled"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["unscaled", "scale"], ["row_scaled"]),
        helper.make_node("Mul", ["row_scaled", "scales"], ["y"]),
    ]
    return open_session(nodes, {name: np.asarray(array) for name, array in constants.items()}, threads)


def qlinear(bits: int, group: int, k: int, n: int, threads: int, *, row_blocks: bool) -> Any:
    rng, size = np.random.default_rng(0), group or k
    codes = rng.integers(0, 2**bits, (n, k), dtype=np.uint8)
    weight = linear_inputs(codes, rng.random((n, k // size), dtype=np.float32), bits=bits)
    constants = {name: getattr(weight, name) for name in function.INPUTS[1:]}
    node = function.node(
        function.INPUTS, "y", weight,
        in_features=k, out_features=n, bits=bits, group_size=size, row_blocks=row_blocks,
    )  # fmt: skip
    node.ClearField("overload")
    return open_session([node], constants, threads)


def session_of(setting: str, k: int, n: int, threads: int) -> Any:
    if setting.startswith("integer"):
        return integer(k, n, threads, only=setting == "integer_only")
    name = setting.removesuffix("b")
    bits, group = (int(part) for part in name.removeprefix("nbits").removeprefix("q").split("g"))
    if setting.startswith("nbits"):
        return nbits(bits, group, k, n, threads)
    return qlinear(bits, group, k, n, threads, row_blocks=name != setting)


def measure(settings: list[str], k: int, n: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    sessions = {setting: session_of(setting, k, n, args.threads) for setting in settings}
    clock: Callable[[], float] = time.thread_time if args.threads == 1 else time.perf_counter
    rows = []
    for count in args.rows:
        x = np.random.default_rng(0).standard_normal((count, k)).astype(np.float32)
        feeds = dict.fromkeys(settings, {"x": x}) | {"integer_only": {"x": (x * 32 + 128).astype(np.uint8)}}
        seconds: dict[str, list[float]] = {setting: [] for setting in settings}
        end = time.perf_counter() + args.seconds
        while time.perf_counter() < end or len(seconds[settings[0]]) < 7:
            for setting, session in sessions.items():
                begin = clock()
                session.run(None, feeds[setting])
                seconds[setting].append(clock() - begin)
        rows += [row_of(setting, k, n, count, seconds) for setting in settings]
    return rows


def row_of(setting: str, k: int, n: int, count: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
    own, operations = seconds[setting], 2 * count * k * n
    bits = "8" if setting.startswith("q8") else "4"
    group = setting.removesuffix("b").partition("g")[2] if setting.startswith("q4") else "128"
    row = {
        "shape": f"{k}x{n}", "rows": count, "name": setting, "repeats": len(own),
        "gops": operations / statistics.median(own) / 1e9, "best_gops": operations / min(own) / 1e9,
    }  # fmt: skip
    rows_apart = setting.removesuffix("b")
    if rows_apart != setting and rows_apart in seconds:
        row["over_one_scale"] = statistics.median(t / s for t, s in zip(seconds[rows_apart], own, strict=True))
        row["best_over_one_scale"] = min(seconds[rows_apart]) / min(own)
    for name in (f"nbits{bits}g{group}", "integer", "integer_only"):
        if setting.startswith("q") and name in seconds:
            kind = name if name.startswith("integer") else "nbits"
            row[f"over_{kind}"] = statistics.median(t / s for t, s in zip(seconds[name], own, strict=True))
            row[f"best_over_{kind}"] = min(seconds[name]) / min(own)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2, help="for all settings of one shape and number of rows")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 32, 64, 128])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="in_features x out_features")
    parser.add_argument("--settings", nargs="+", default=SETTINGS)
    parser.add_argument("--simd", choices=["amx", "avx512_vnni", "avx512", "avx_vnni", "avx2", "portable"])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    if args.simd and not kernels.set_simd(args.simd):
        raise SystemExit(f"{args.simd} is not available here")
    about = {
        "date": datetime.date.today().isoformat(), "machine": platform.machine(), "processor": processor(),
        "onnxruntime": ort.__version__, "simd": kernels.simd(), "threads": args.threads,
    }  # fmt: skip
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    columns = ("gops", "best_gops", "over_nbits", "best_over_nbits", "over_integer_only", "best_over_integer_only")
    print(f"{'shape':>10}{'rows':>5}  {'':13}" + "".join(f"{name:>23}" for name in columns))
    rows = []
    for shape in args.shapes:
        k, n = (int(size) for size in shape.split("x"))
        for row in measure(args.settings, k, n, args):
            rows.append(row)
            numbers = "".join(f"{row[name]:23.2f}" if name in row else f"{'':23}" for name in columns)
            print(f"{shape:>10}{row['rows']:5}  {row['name']:13}{numbers}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
