"""Whole bundles on this machine's GPU against a plain PyTorch float16 loop: tokens per second, same decoding.

    python benchmarks/gpu_end_to_end.py

Random weights in the shapes of SDAR-1.7B, SDAR-4B and LLaDA-8B, quantized to 4 bits, exported with --target cuda, run
by onnxruntime-gpu with this project's operators. The PyTorch loop recomputes the whole sequence at every step, as the
published code of the families does, with the same weights dequantized once to float16. Both commit one token per step,
so the step counts are equal and the tokens per second comparable. First, on a small model, the two
must agree in nine of ten tokens before float16 lets them part at a near-tie. Needs torch with CUDA,
onnxruntime-gpu, the native library, and Triton to compile the kernels if that has not been done.
Exit codes: 0 done, 1 the outputs disagree, 5 no usable GPU or installation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_attention import NO_DEVICE, RESULTS, WRONG, machine, missing, say

TOOLS = Path(__file__).resolve().parent.parent / "tools"
SHAPES = ("1.7b", "4b", "llada-8b")
POLICIES = {  # by cache layout
    "kv": ("dense", "losa", "mage"),
    "none": ("dense", "sparsed"),  # every step computes the whole sequence: models with full attention only
}
FULL_ATTENTION = ("llada-8b",)
AGREEMENT = 0.9  # share of equal tokens before two float16 runs may part at a near-tie
SMALL = "tiny"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, choices=SHAPES)
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--torch-tokens", type=int, default=8, help="of the slow side; time is per token")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, help="keep checkpoints and bundles in this folder")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/DATE-gpu-end-to-end-DEVICE.json")
    args = parser.parse_args()
    problem = missing() or missing_runtime()
    if problem:
        print(f"gpu_end_to_end: {problem}", file=sys.stderr)
        return NO_DEVICE
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        share = agreement(work)
        say(f"{share:.0%} of the tokens of a small model are those of the PyTorch loop")
        if share < AGREEMENT:
            return WRONG
        rows = [row for shape in args.shapes for row in measure_shape(shape, work, args)]
    result = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "agreement": share, "rows": rows}
    device = str(result["machine"]["device"]).lower().replace(" ", "-")  # type: ignore[index]
    target = args.json or RESULTS / f"{result['date']}-gpu-end-to-end-{device}.json"
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_table(rows)
    say(f"written to {target}")
    return 0


def missing_runtime() -> str | None:
    """What the installation lacks beside a GPU; compiles the kernels for this device where they are not there."""
    import torch

    from dlm_edge import kernels
    from dlm_edge.kernels.cuda_library import architectures

    try:
        import onnxruntime
    except ImportError:
        return "onnxruntime-gpu is not installed; pip install 'dlm-edge[cuda]'"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "the installed onnxruntime has no CUDA provider; pip install 'dlm-edge[cuda]'"
    if kernels.library_path() is None:
        return "the native library is not built; python setup.py build_ext --inplace"
    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor not in architectures():
        say(f"compiling the kernels for sm_{10 * major + minor}")
        command = [sys.executable, str(TOOLS / "compile_kernels.py"), "--arch", str(10 * major + minor)]
        if subprocess.run(command, check=False).returncode:
            return "the kernels could not be compiled for this device"
    return None


def prepare(shape: str, work: Path, cache: str = "kv") -> tuple[Path, Path]:
    """A packed checkpoint and its bundle; what stands in `work` already is used again."""
    from dlm_edge.export import export
    from dlm_edge.quant import quantize

    source, packed, bundle = (work / f"{shape}-{kind}" for kind in ("source", "packed", f"bundle-{cache}"))
    if not (source / "config.json").exists():
        say(f"writing a random {shape} checkpoint")
        write_source(source, shape)
    if not packed.exists():
        say("quantizing to 4 bits (rtn)")
        quantize(source, packed, method="rtn", bits=4, group_size=128 if shape != SMALL else 32, resume=True)
    if not bundle.exists():
        say("exporting")
        export(packed, bundle, target="cuda", cache=cache)
    return packed, bundle


def write_source(folder: Path, shape: str) -> None:
    if shape == "llada-8b":
        import big_checkpoint

        folder.mkdir(parents=True, exist_ok=True)
        spec = big_checkpoint.make_spec(4096, big_checkpoint.DEPTH, big_checkpoint.VOCABULARY)
        big_checkpoint.write_checkpoint(folder, spec)
    else:
        import random_checkpoint

        random_checkpoint.write_checkpoint(folder, shape)


def agreement(work: Path) -> float:
    """Share of equal tokens up to the first that differs, on a small model: the whole path, before it is timed."""
    from dlm_edge.runtime import Engine

    packed, bundle = prepare(SMALL, work)
    prompt, n = random_prompt(200, 1024), 32
    expected, _ = decode_plain(load_half(packed), prompt, n)
    with Engine.open(bundle, device="cuda") as engine:
        check_native(engine)
        found = generate(engine, prompt, n, "dense")
    equal = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(expected))
    return equal / max(len(expected), 1)


def measure_shape(shape: str, work: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for cache in ("kv", "none") if shape in FULL_ATTENTION else ("kv",):
        packed, bundle = prepare(shape, work, cache)
        found, prompts = measure_bundle(shape, bundle, cache, args)
        rows += found
    return with_speed_ups(rows + measure_plain(shape, packed, prompts, args))


def measure_bundle(
    shape: str, bundle: Path, cache: str, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[int, list[int]]]:
    """Rows, and the prompts by their lengths."""
    from dlm_edge.runtime import Engine

    rows = []
    with Engine.open(bundle, device="cuda") as engine:
        check_native(engine)
        lengths = [n for n in args.prompt_tokens if n + args.new_tokens <= engine.spec.max_positions]
        prompts = {n: random_prompt(n, engine.spec.vocab_size) for n in lengths}
        for n, prompt in prompts.items():
            for policy in POLICIES[cache]:
                say(f"{shape}, prompt {n}, cache {cache}, {policy}")
                generate(engine, prompt, args.new_tokens, policy)  # loads kernels, grows memory
                times = repeated(partial(generate, engine, prompt, args.new_tokens, policy), args)
                what = policy if cache == "kv" else f"{policy}, no cache"
                rows.append({"shape": shape, "prompt": n, "what": what, **per_token(times, args.new_tokens)})
    return rows, prompts


def measure_plain(
    shape: str, packed: Path, prompts: dict[int, list[int]], args: argparse.Namespace
) -> list[dict[str, Any]]:
    import torch

    model, rows = load_half(packed), []
    for n, prompt in prompts.items():
        say(f"{shape}, prompt {n}, PyTorch")
        try:
            _, committed = decode_plain(model, prompt, args.torch_tokens)
            times = repeated(partial(decode_plain, model, prompt, args.torch_tokens), args)
        except torch.cuda.OutOfMemoryError:
            say("  not enough device memory for the PyTorch loop: left out")
            continue
        rows.append({"shape": shape, "prompt": n, "what": "torch float16", **per_token(times, committed)})
    return rows


def generate(engine: Any, prompt: list[int], n: int, policy: str) -> list[int]:
    done = engine.generate(prompt, max_new_tokens=n, sampler="static", stop_at_eos=False, attention=policy)
    return list(done.token_ids)


def check_native(engine: Any) -> None:
    if not engine.parts.native_operators:
        raise SystemExit("the session runs function bodies, not this project's CUDA operators; see docs/gpu.md")


def load_half(packed: Path) -> Any:
    import torch

    from dlm_edge.models import load_model

    return load_model(packed, torch.float16).to("cuda")


def decode_plain(model: Any, prompt: list[int], n: int) -> tuple[list[int], int]:
    """The ids before the first stop id, and how many tokens were committed."""
    import torch

    from dlm_edge.models import plain_loop

    with torch.device("cuda"):  # the loop's own tensors too
        done = plain_loop.decode(model, prompt, plain_loop.PlainSettings(gen_len=n))
    torch.cuda.synchronize()
    return done.ids, sum(len(step) for step in done.commits)


def random_prompt(n: int, vocab_size: int) -> list[int]:
    found: list[int] = np.random.default_rng(0).integers(2, min(vocab_size, 100_000), n).tolist()
    return found


def repeated(run: Any, args: argparse.Namespace) -> list[float]:
    times = []
    for _ in range(args.repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return times


def per_token(times: list[float], n: int) -> dict[str, float]:
    """The prompt's own pass is included."""
    return {"seconds": statistics.median(times) / n, "least": min(times) / n, "most": max(times) / n}


def with_speed_ups(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over the PyTorch loop on the same prompt, where that could run."""
    plain = {row["prompt"]: row["seconds"] for row in rows if row["what"] == "torch float16"}
    for row in rows:
        if row["prompt"] in plain:
            row["speed_up"] = plain[row["prompt"]] / row["seconds"]
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    print("| shape | prompt | what | tokens/s | speed-up |")
    print("|---|---|---|---|---|")
    for row in rows:
        speed_up = f"{row['speed_up']:.1f}" if "speed_up" in row else ""
        print(f"| {row['shape']} | {row['prompt']} | {row['what']} | {1 / row['seconds']:.1f} | {speed_up} |")


if __name__ == "__main__":
    sys.exit(main())
