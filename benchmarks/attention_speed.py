"""Time the attention of a denoising step over long prefixes: dense, page-sparse, quantized, on the CPU.

    python benchmarks/attention_speed.py [--threads 2] [--repeats 9] [--json attention_speed.json]

Head shapes of 8B models. One session runs some layers, each with caches and state of its own, as a step graph does;
times are those of one layer. A buffer larger than the last-level cache is written before each run: nothing is near.
Every setting runs in the same round; medians, and ratios are medians of the ratios within a round. `ort` is
ONNX Runtime's Attention over keys and values that are joined already. `losa` is a steady step: some rows attend
afresh, to the pages that the block's first step measured; `quest` chooses pages for every row by their bounds.
`bytes` is the time that the touched bytes take at the bandwidth measured in the same run, pages alone and with the
state; `flops` that of the multiplications in float32 at the speed of MatMul (benchmarks/sparse/roofline.py).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import helper
from sparse.layers import OVERLOADS, Layers, StepShape, make_model, open_session
from sparse.roofline import Machine, Work, measure_machine, work_of

from dlm_edge import kernels
from dlm_edge.kernels.select_pages.reference import DENSE, SELECT, SELECT_ROWS, Policy

HEADS = {"SDAR-8B": (32, 8, 128), "LLaDA-8B": (32, 32, 128)}
PREFIXES = (1024, 4096, 8192, 16384, 32768)
FLUSH_BYTES = 256 << 20
LAYER_BYTES = 1 << 30  # of the float32 caches of all layers together


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    layout: str
    mode: int
    share: int = 1  # of the prefix that a query reads: one part of so many

    def policy(self, args: argparse.Namespace, prefix: int) -> Policy:
        n_active = args.active if self.mode == SELECT_ROWS else args.rows
        n_pages = max(prefix // self.share // args.page, 1)
        return Policy(mode=self.mode, n_pages=n_pages, n_active=n_active, sink=0, recent=0, page_size=args.page)


SETTINGS = [
    Setting("dense", "kv-fp32", DENSE),
    *(Setting(f"losa 1/{share}", "kv-fp32", SELECT_ROWS, share) for share in (8, 16, 32)),
    Setting("quest 1/16", "kv-fp32", SELECT, 16),
    *(Setting(f"dense {layout}", layout, DENSE) for layout in OVERLOADS if layout != "kv-fp32"),
    *(Setting(f"losa 1/16 {layout}", layout, SELECT_ROWS, 16) for layout in OVERLOADS if layout != "kv-fp32"),
]


def ort_attention(layers: Layers, threads: int) -> Callable[[], Any]:
    """One layer, whose result must be that of the dense native operator."""
    joined = {"q": layers.inputs["q"]}
    for name in ("k", "v"):
        prefix = layers.inputs[f"{name}_cache_0"][:, :, : layers.shape.prefix]
        joined[name] = np.concatenate([prefix, layers.inputs[name]], 2)
    node = helper.make_node("Attention", list(joined), ["out"])
    session = open_session(make_model([node], joined, ["out"], []), threads, native=False)
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in joined.items()}
    out = session.run_with_ort_values(["out"], values)[0].numpy()
    layers.run(Policy(mode=DENSE, page_size=layers.shape.page))
    difference = float(np.abs(out.swapaxes(1, 2).reshape(layers.out.shape) - layers.out).max())
    if not difference <= 1e-5:
        raise SystemExit(f"ONNX Runtime's Attention and ours differ by {difference}")
    return lambda: session.run_with_ort_values(["out"], values)


def measure(heads: str, prefix: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    shape = StepShape(*HEADS[heads], args.rows, prefix, args.page)
    count = max(1, min(args.layers, LAYER_BYTES // (8 * prefix * shape.n_kv * shape.dim)))
    chosen = [setting for setting in SETTINGS if not args.only or setting.name in args.only]
    layers = {name: Layers(name, shape, count, args.threads) for name in {setting.layout for setting in chosen}}
    flush, times = np.zeros(FLUSH_BYTES, np.uint8), dict[str, list[float]]()
    works: dict[str, Work] = {}
    with_ort = ort_attention(layers["kv-fp32"], args.threads) if not args.only else None
    machine = measure_machine(args.threads)
    for _ in range(args.repeats):
        if with_ort:
            times.setdefault("ort", []).append(timed(flush, with_ort))
        for setting in chosen:
            tested, policy = layers[setting.layout], setting.policy(args, prefix)
            tested.prepare()
            times.setdefault(setting.name, []).append(timed(flush, lambda: tested.run(policy)) / count)  # noqa: B023
            works[setting.name] = work_of(tested, reads_masses=setting.mode == SELECT_ROWS)
    rows = []
    for name, seconds in times.items():
        row: dict[str, Any] = {"heads": heads, "prefix": prefix, "layers": 1 if name == "ort" else count, "name": name}
        row["ms"] = 1e3 * statistics.median(seconds)
        if "dense" in times:
            row["dense_over_this"] = statistics.median(d / t for d, t in zip(times["dense"], seconds, strict=True))
        rows.append(row | (bounds_of(works[name], machine, row["ms"]) if name in works else {}))
    return rows


def timed(flush: np.ndarray[Any, Any], run: Callable[[], Any]) -> float:
    flush += 1
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def bounds_of(work: Work, machine: Machine, ms: float) -> dict[str, float]:
    """Least milliseconds by three counts, and the time over them. Codes are not multiplied in float32 everywhere: their
    `over_roofline` is by the count of float32 operations all the same."""
    pages_ms = 1e3 * work.page_bytes / machine.bandwidth
    bytes_ms = pages_ms + 1e3 * work.state_bytes / machine.bandwidth
    flops_ms = 1e3 * work.flops / machine.flops
    return {
        "page_bytes": work.page_bytes, "state_bytes": work.state_bytes, "flops": work.flops,
        "bandwidth": machine.bandwidth, "peak_flops": machine.flops,
        "pages_ms": pages_ms, "bytes_ms": bytes_ms, "flops_ms": flops_ms,
        "over_pages": ms / pages_ms, "over_bytes": ms / bytes_ms, "over_roofline": ms / max(bytes_ms, flops_ms),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--layers", type=int, default=4, help="layers in a session; fewer where the caches are large")
    parser.add_argument("--rows", type=int, default=16, help="length of the block")
    parser.add_argument("--active", type=int, default=5, help="rows that attend afresh in a step of losa")
    parser.add_argument("--page", type=int, default=8, help="tokens of a page")
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--prefixes", nargs="+", type=int, default=list(PREFIXES))
    parser.add_argument("--only", nargs="+", choices=[setting.name for setting in SETTINGS], help="not all settings")
    parser.add_argument("--simd", choices=["avx512_vnni", "avx512", "avx2", "portable"], help="force a variant")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    if args.simd and not kernels.set_simd(args.simd):
        raise SystemExit(f"{args.simd} is not available here")
    print(f"{platform.machine()}, onnxruntime {ort.__version__}, {args.threads} threads, {kernels.simd()}, blocks of "
          f"{args.rows}, {args.active} active rows, pages of {args.page}, median of {args.repeats}")  # fmt: skip
    columns = ("ms", "dense_over_this", "pages_ms", "bytes_ms", "flops_ms", "over_pages", "over_bytes", "over_roofline")
    print(f"{'heads':9}{'prefix':>7}  {'':18}" + "".join(f"{name:>16}" for name in columns))
    rows = []
    for heads in args.heads:
        for prefix in args.prefixes:
            for row in measure(heads, prefix, args):
                rows.append(row)
                numbers = "".join(f"{row[name]:16.3f}" if name in row else f"{'':16}" for name in columns)
                print(f"{heads:9}{prefix:7}  {row['name']:18}{numbers}", flush=True)
    if args.json:
        about = {name: getattr(args, name) for name in ("threads", "repeats", "rows", "active", "page")}
        args.json.write_text(json.dumps({**about, "simd": kernels.simd(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
