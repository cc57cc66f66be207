"""A whole model over long prompts: effective tokens a second with dense and with sparse attention, end to end.

    python benchmarks/long_prompt.py WORK_FOLDER [--shape 0.5b] [--prompts 4096 16384] [--json long_prompt.json]

Random weights in 4 bits, one token a step, so every policy takes the same number of steps. The prompt is computed once;
every later request finds it kept, so decoding alone is timed. Policies take turns; medians over the rounds, ratios to
dense within a round. The share of attention in a step grows with the prompt and shrinks with the model. What each
policy costs in quality is measured on trained models by attention_quality.py.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from random_checkpoint import SHAPES, write_checkpoint

from dlm_edge.export import export
from dlm_edge.quant import quantize
from dlm_edge.runtime import Engine, Result

POLICIES: dict[str, dict[str, Any]] = {
    "dense": {},
    "losa 1/8": {"attention": "losa", "budget": 8},
    "losa 1/16": {"attention": "losa", "budget": 16},
    "flashblock 3": {"attention": "flashblock", "changed": 3},
}  # budgets as parts of the prompt


def bundle_for(work: Path, shape: str, cache: str) -> Path:
    """Made once; a later run finds it."""
    source, packed = work / f"random-{shape}", work / f"random-{shape}-w4"
    bundle = work / f"random-{shape}-w4-{cache}.dlm"
    if not (source / "tokenizer.json").is_file():
        write_checkpoint(source, shape)
    if not packed.is_dir():
        quantize(source, packed, method="rtn", bits=4, group_size=32, resume=True)
    if not bundle.is_dir():
        export(packed, bundle, cache=cache)
    return bundle


def request(engine: Engine, prompt: list[int], settings: dict[str, Any], new_tokens: int) -> Result:
    chosen = settings | ({"budget": len(prompt) // settings["budget"] // 8 * 8} if "budget" in settings else {})
    return engine.generate(prompt, max_new_tokens=new_tokens, sampler="static", stop_at_eos=False, **chosen)


def measure(bundle: Path, length: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {}
    density: dict[str, float] = {}
    with Engine.open(bundle, threads=args.threads) as engine:
        prompt = rng.integers(2, engine.spec.vocab_size, length).tolist()
        for name, settings in POLICIES.items():
            first = request(engine, prompt, settings, 1)  # what is computed here is kept
            print(f"{name}: {first.prefill_seconds:.1f} s for the prompt", file=sys.stderr)
            for _ in range(args.repeats):
                for other, chosen in {"dense": {}, name: settings}.items():
                    result = request(engine, prompt, chosen, args.new_tokens)
                    key = f"{name}/{other}"
                    seconds.setdefault(key, []).append(result.seconds - result.prefill_seconds)
                    density[key] = result.density
    rows = []
    for name in POLICIES:
        own, dense = seconds[f"{name}/{name}"], seconds[f"{name}/dense"]
        rows.append(
            {
                "prompt": length, "policy": name, "density": density[f"{name}/{name}"],
                "tokens_per_s": args.new_tokens / statistics.median(own),
                "times_dense": statistics.median(d / s for d, s in zip(dense, own, strict=True)),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--shape", default="0.5b", choices=list(SHAPES))
    parser.add_argument("--prompts", nargs="+", type=int, default=[4096, 16384])
    parser.add_argument("--cache", default="kv")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    bundle = bundle_for(args.work, args.shape, args.cache)
    print(f"{platform.machine()}, shape {args.shape}, 4 bits, cache {args.cache}, {args.threads} threads, "
          f"{args.new_tokens} tokens, median of {args.repeats}")  # fmt: skip
    rows = [row for length in args.prompts for row in measure(bundle, length, args)]
    for row in rows:
        print(f"{row['prompt']:7} {row['policy']:14} {row['tokens_per_s']:8.2f} tokens/s  {row['times_dense']:6.2f} x dense"
              f"  density {row['density']:.3f}")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"shape": args.shape, "threads": args.threads, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
