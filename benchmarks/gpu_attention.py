"""Attention of one layer on this machine's GPU: first that it is right, then how fast.

    python benchmarks/gpu_attention.py

Dense (ours, PyTorch's SDPA, flash-attn and ONNX Runtime's Attention where present) against quest, losa and mage, on
the head shapes of SDAR-8B, LLaDA-8B and Dream-7B, prefixes of 1K to 64K tokens, blocks of 16 and 32, pages in float16,
int8 and int4. Needs torch with CUDA and Triton. A step is all of SelectPages and PrefixBlockAttention. "speed-up" is
against the fastest dense attention of anybody; "block of 8" counts the dense first step in. Bandwidth is what the step
had to read over its time, beside a measured copy. Two more tables: keys and values made again from XQuant's codes, fused
and as two operators; and sequences without a cache, dense and by SparseD's pattern.
Exit codes: 0 done, 1 wrong results, 5 no usable GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

NO_DEVICE, WRONG = 5, 1
MODELS = {"SDAR-8B": (32, 8, 128), "LLaDA-8B": (32, 32, 128), "Dream-7B": (28, 4, 128)}  # heads, kv heads, head_dim
PREFIXES = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
BLOCKS = (16, 32)
LENGTHS = (2048, 8192, 16384)  # of sequences without a cache
OUT_OF_CACHE_BYTES = 256 << 20  # several times the last-level cache of any device
MOST_LAYERS = 36
TARGET = 4.2  # losa over dense at 32K, steady state
RESULTS = Path(__file__).resolve().parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--prefixes", nargs="+", type=int, default=PREFIXES)
    parser.add_argument("--blocks", nargs="+", type=int, default=BLOCKS)
    parser.add_argument("--bits", nargs="+", type=int, default=(16, 8, 4), choices=(16, 8, 4))
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, help="of sequences without a cache")
    parser.add_argument("--check-only", action="store_true", help="correctness, no times")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/DATE-gpu-attention-DEVICE.json")
    args = parser.parse_args()
    problem = missing()
    if problem:
        print(f"gpu_attention: {problem}", file=sys.stderr)
        return NO_DEVICE
    from gpu.correctness import check_all
    from gpu.other_operators import print_tables

    say("checking every kernel against the definitions")
    checks = check_all("cuda")
    wrong = [row for row in checks if not row["ok"]]
    for row in wrong:
        say(f"WRONG {row}")
    say(f"{len(checks) - len(wrong)} of {len(checks)} checks hold")
    if wrong or args.check_only:
        return WRONG if wrong else 0
    result = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "checks": checks, **measure(args)}
    device = result["machine"]["device"].lower().replace(" ", "-")
    target = args.json or RESULTS / f"{result['date']}-gpu-attention-{device}.json"
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_table(result)
    print_tables(result["rematerialised"], result["sequences"])
    say(f"written to {target}")
    return 0


def missing() -> str | None:
    """What this machine lacks, or None."""
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET is set: the interpreter's times mean nothing; unset it"
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed; pip install torch, from the index of your CUDA version"
    if not torch.cuda.is_available():
        return f"no CUDA device (torch {torch.__version__}); nothing was measured"
    try:
        import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
    except ImportError:
        return "Triton is not installed; pip install triton"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than compute capability 8.0"
    return None


def measure(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from gpu.other_operators import measure_rows, measure_sequences
    from gpu.timing import copy_bandwidth
    from gpu.workload import Shape

    bandwidth = copy_bandwidth()
    say(f"a copy moves {bandwidth / 1e9:.0f} GB/s")
    rows: list[dict[str, Any]] = []
    for model in args.models:
        for q_len in args.blocks:
            for prefix in args.prefixes:
                say(f"{model}, block {q_len}, prefix {prefix}")
                try:
                    rows += measure_shape(Shape(model, *MODELS[model], q_len, prefix), args.bits, bandwidth)
                except torch.cuda.OutOfMemoryError:
                    say("  not enough device memory: left out")
                torch.cuda.empty_cache()
    models = {model: MODELS[model] for model in args.models}
    more = {
        "rematerialised": measure_rows(models, args.prefixes, bandwidth, say),
        "sequences": measure_sequences(models, args.lengths, say),
    }
    return {"copy_bytes_per_s": bandwidth, "rows": rows, **more}


def measure_shape(shape: Any, all_bits: list[int], bandwidth: float) -> list[dict[str, Any]]:
    from gpu import baselines
    from gpu.timing import seconds_of_session_runs, seconds_per_call
    from gpu.workload import Workload

    kv_bytes = 4 * shape.n_kv_heads * shape.prefix * shape.head_dim
    layers = min(MOST_LAYERS, -(-OUT_OF_CACHE_BYTES // kv_bytes))
    rows: list[dict[str, Any]] = []

    def add(step: str, bits: int, times: tuple[float, float, float], n_bytes: float, **more: object) -> None:
        row = {"model": shape.model, "block": shape.q_len, "prefix": shape.prefix, "step": step, "bits": bits}
        row |= {"seconds": times[0], "least": times[1], "most": times[2], "layers": layers, "bytes": n_bytes}
        rows.append({**row, "of_copy_bandwidth": n_bytes / times[0] / bandwidth, **more})

    for bits in all_bits:
        work = [Workload(shape, bits, seed=seed) for seed in range(layers)]
        for step in ("plain dense", "dense", "quest", "losa", "losa by masses", "mage first", "mage"):
            if step == "plain dense" and bits != 16:
                continue
            times = seconds_per_call([each.prepare(step) for each in work])
            density = None if step == "plain dense" else work[0].density()
            add(step, bits, times, work[0].bytes_read(step), density=density)
        if bits != 16:
            continue
        per_layer = [baselines.torch_baselines(each) for each in work]
        for name, run in per_layer[0].items():
            difference = baselines.largest_difference(work[0], run, shape)
            add(name, 16, seconds_per_call([each[name] for each in per_layer]), kv_bytes, difference=difference)
        runtime = baselines.onnxruntime_baseline(work[0])
        if isinstance(runtime, str):
            say(f"  ONNX Runtime's Attention is left out: {runtime}")
        else:
            difference = baselines.largest_difference(work[0], runtime, shape)
            add("onnxruntime", 16, seconds_of_session_runs(runtime), kv_bytes, difference=difference)
    return with_ratios(rows)


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Speed-ups over the fastest dense float16 attention, for one step and for blocks with their dense first step."""
    sparse = {
        "quest": "dense",
        "losa": "dense",
        "losa by masses": "mage first",
        "mage": "mage first",
    }  # step: the first step of its block
    others = [row for row in rows if row["bits"] == 16 and row["step"] not in (*sparse, "mage first")]
    if not others:
        return rows
    dense = min(others, key=lambda row: row["seconds"])
    for row in rows:
        row["speed_up"] = dense["seconds"] / row["seconds"]
        if row["step"] in sparse:
            first = next(r for r in rows if (r["step"], r["bits"]) == (sparse[row["step"]], row["bits"]))
            for n in (4, 8, 16):
                block = first["seconds"] + (n - 1) * row["seconds"]
                row[f"block_of_{n}"] = n * dense["seconds"] / block
    return rows


def machine() -> dict[str, Any]:
    import torch
    import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]

    properties = torch.cuda.get_device_properties(0)
    return {
        "device": torch.cuda.get_device_name(),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }


def print_table(result: dict[str, Any]) -> None:
    print("| model | block | prefix | step | bits | us | density | speed-up | block of 8 | of copy bandwidth |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in result["rows"]:
        density = "" if row.get("density") is None else f"{row['density']:.1%}"
        block = f"{row['block_of_8']:.2f}" if "block_of_8" in row else ""
        print(
            f"| {row['model']} | {row['block']} | {row['prefix']} | {row['step']} | {row['bits']} "
            f"| {row['seconds'] * 1e6:.1f} | {density} | {row.get('speed_up', 1):.2f} | {block} "
            f"| {row['of_copy_bandwidth']:.0%} |"
        )
    for row in result["rows"]:
        if (row["step"], row["bits"], row["prefix"]) == ("losa", 16, 32768):
            verdict = "reached" if row["speed_up"] >= TARGET else "MISSED"
            print(f"{row['model']}, block {row['block']}: losa {row['speed_up']:.2f}x at 32K, {TARGET}x {verdict}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
