"""What a token takes of memory in every cache layout: resident bytes of a process, beside the arithmetic.

    python benchmarks/cache_memory.py --json cache_memory.json
    python benchmarks/cache_memory.py --json cache_memory.json --render

Every layout of every model is exported, and a process of its own generates from it at two contexts. Linux tells how
much of that process is resident:

held  what leaves it when the filled caches are released; the difference between both contexts, over their tokens
peak  its largest size, caches, activations and rows on their way into the caches; again a difference over tokens

Models: `reference` (grouped heads), `reference-full` (one K/V head for each query head, full attention) and `wide`, random
weights with one K/V head for each query head, 1024 wide and block-causal: its caches dwarf everything else. Rows are
written one by one; a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import dlm_edge
from dlm_edge import files
from dlm_edge.memory import peak_rss_bytes, rss_bytes
from dlm_edge.runtime import Engine

CONTEXTS = {"reference": (1024, 4096), "reference-full": (1024, 4096), "wide": (1024, 4096)}
KV = ("kv-fp32", "kv-fp16", "kv-int8", "kv-int4x2", "kv-int4")
X = ("x-int8", "x-int4", "x-int3", "x-int2", "x-cl4", "x-cl3", "x-cl2")
NEW_TOKENS = 16


def fill(bundle: Path, context: int) -> dict[str, int]:
    """Runs alone in its process: bytes resident at most, with filled caches, and after their release."""
    with Engine.open(bundle, threads=1) as engine:
        reserved = [engine.spec.conventions.mask_id, *engine.spec.conventions.stop_ids]
        usable = np.setdiff1d(np.arange(engine.spec.vocab_size), reserved)
        prompt = np.random.default_rng(0).choice(usable, context - NEW_TOKENS).tolist()
        engine.generate(prompt, max_new_tokens=NEW_TOKENS, stop_at_eos=False, sampler="static", steps=2)
        found = {"peak": peak_rss_bytes(), "filled": resident()}
        engine.parts.model.discard()  # type: ignore[attr-defined]
        return found | {"released": resident()}


def resident() -> int:
    """Without what the allocator keeps of freed memory."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return rss_bytes()


def measure(bundle: Path, contexts: tuple[int, int]) -> dict[str, Any]:
    runs = [in_own_process(bundle, context) for context in contexts]
    tokens = contexts[1] - contexts[0]
    held = [run["filled"] - run["released"] for run in runs]
    with Engine.open(bundle, threads=1) as engine:
        arithmetic = engine.parts.cache_bytes_per_position
    return {
        "contexts": contexts,
        "arithmetic": arithmetic,
        "held": (held[1] - held[0]) / tokens,
        "peak": (runs[1]["peak"] - runs[0]["peak"]) / tokens,
        "runs": runs,
    }


def in_own_process(bundle: Path, context: int) -> dict[str, int]:
    command = [sys.executable, __file__, "--fill", str(bundle), str(context)]
    found: dict[str, int] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def run(args: argparse.Namespace) -> None:
    results: dict[str, Any] = json.loads(args.json.read_text()) if args.json.exists() else {"models": {}}
    results |= {"system": platform.platform(), "versions": {"dlm-edge": dlm_edge.__version__, "numpy": np.__version__}}
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            found = results["models"].setdefault(model, {})
            pending = [layout for layout in args.layouts if layout not in found]
            source: str | Path = model
            if model == "wide" and pending:
                from random_checkpoint import write_checkpoint  # needs torch, which would be half of what is measured

                source = write_checkpoint(Path(folder) / "wide", "wide")
            for layout in pending:
                bundle = Path(folder) / "bundle"
                dlm_edge.export(source, bundle, cache=layout, profile="fp32", restart=True)
                found[layout] = measure(bundle, CONTEXTS[model])
                files.write_json(args.json, results)
                print(f"{model:15} {layout:8} {found[layout]}", file=sys.stderr)


def table(results: dict[str, Any]) -> str:
    """Bytes per token of all layers; ratios are those of kv-fp16 over the layout, both measured."""
    lines = []
    for model, found in results["models"].items():
        heading = ["cache", "arithmetic", "held", "kv-fp16 / held", "peak growth"]
        lines += [f"{model}, bytes per token", "", f"| {' | '.join(heading)} |", "|---|---|---|---|---|"]
        half = found.get("kv-fp16")
        for layout, row in found.items():
            ratio = f"{half['held'] / row['held']:.2f}" if half else "-"
            lines.append(f"| {layout} | {row['arithmetic']} | {row['held']:.0f} | {ratio} | {row['peak']:.0f} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("cache_memory.json"))
    parser.add_argument("--models", nargs="+", default=list(CONTEXTS), choices=list(CONTEXTS))
    parser.add_argument("--layouts", nargs="+", default=[*KV, *X], choices=[*KV, *X])
    parser.add_argument("--render", action="store_true", help="print the table of --json")
    parser.add_argument("--fill", nargs=2, metavar=("BUNDLE", "CONTEXT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fill:
        print(json.dumps(fill(Path(args.fill[0]), int(args.fill[1]))))
        return
    if not args.render:
        run(args)
    print(table(json.loads(args.json.read_text())))


if __name__ == "__main__":
    main()
