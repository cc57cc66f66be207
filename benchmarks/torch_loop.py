"""Our runtime against a plain PyTorch loop on the same 4-bit weights, same sampler, same number of steps.

    python benchmarks/torch_loop.py --shape 0.5b --json build/torch_loop.json

The PyTorch loop recomputes the whole sequence at every step, as the model families' published code does, with
weights dequantized once; float32 and bfloat16 are both measured, and the faster one is the baseline.
The decode is `static`: one token per step. Medians over the repeats; the prompt's own pass is included.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from random_checkpoint import write_checkpoint

from dlm_edge.benchmark import processor
from dlm_edge.export import export
from dlm_edge.models import load_model, plain_loop
from dlm_edge.quant import quantize
from dlm_edge.runtime import Engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.5b")
    parser.add_argument("--model", help="a checkpoint instead of a random one")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--torch-tokens", type=int, default=None, help="fewer for the slow side; time is per token")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--work", help="keep checkpoint and bundle in this folder")
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(args.work or temporary)
        packed, bundle = prepare(work, args)
        result = measure(packed, bundle, args)
    print_table(result)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n")


def prepare(work: Path, args: argparse.Namespace) -> tuple[Path, Path]:
    source = Path(args.model) if args.model else work / "source"
    if not (source / "config.json").exists():
        say(f"writing a random {args.shape} checkpoint")
        write_checkpoint(source, args.shape)
    packed, bundle = work / "packed", work / "bundle"
    if not packed.exists():
        say("quantizing to 4 bits (rtn)")
        quantize(source, packed, method="rtn", bits=4, group_size=args.group_size, resume=True)
    if not bundle.exists():
        say("exporting")
        export(packed, bundle)
    return packed, bundle


def measure(packed: Path, bundle: Path, args: argparse.Namespace) -> dict[str, object]:
    models = {"torch float32": load_model(packed), "torch bfloat16": load_model(packed, torch.bfloat16)}
    rng = np.random.default_rng(0)
    rows = []
    with Engine.open(bundle, threads=args.threads) as engine:
        vocab = engine.spec.vocab_size
        for n in args.prompt_tokens:
            prompt = rng.integers(2, vocab, n).tolist()
            times: dict[str, list[float]] = {name: [] for name in ("dlm-edge", *models)}
            for repeat in range(args.repeats):
                say(f"prompt {n}, repeat {repeat + 1} of {args.repeats}")
                engine.forget_prompt()  # the torch loop computes it every time, too
                started = time.perf_counter()
                engine.generate(prompt, max_new_tokens=args.new_tokens, sampler="static", stop_at_eos=False)
                times["dlm-edge"].append((time.perf_counter() - started) / args.new_tokens)
                tokens = args.torch_tokens or args.new_tokens
                for name, model in models.items():
                    started = time.perf_counter()
                    decoded = plain_loop.decode(model, prompt, plain_loop.PlainSettings(gen_len=tokens))
                    committed = sum(len(step) for step in decoded.commits)
                    times[name].append((time.perf_counter() - started) / committed)
            medians = {name: statistics.median(values) for name, values in times.items()}
            baseline = min(medians[name] for name in models)
            rows.append(
                {
                    "prompt_tokens": n,
                    "new_tokens": args.new_tokens,
                    "seconds_per_token": medians,
                    "spread": {name: [min(v), max(v)] for name, v in times.items()},
                    "speed_up": baseline / medians["dlm-edge"],
                }
            )
    machine = {
        "processor": processor(),
        "threads": args.threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    setting = {"shape": args.shape, "group_size": args.group_size, "sampler": "static", "repeats": args.repeats}
    return {"date": time.strftime("%Y-%m-%d"), "machine": machine, "setting": setting, "rows": rows}


def print_table(result: dict[str, object]) -> None:
    rows = result["rows"]
    assert isinstance(rows, list)
    print("| prompt tokens | dlm-edge s/token | torch float32 s/token | torch bfloat16 s/token | speed-up |")
    print("|---|---|---|---|---|")
    for row in rows:
        seconds = row["seconds_per_token"]
        cells = [f"{seconds[name]:.3f}" for name in ("dlm-edge", "torch float32", "torch bfloat16")]
        print(f"| {row['prompt_tokens']} | {' | '.join(cells)} | {row['speed_up']:.1f} |")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
