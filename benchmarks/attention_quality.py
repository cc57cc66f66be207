"""What sparse attention and compressed caches cost in quality, and what they read.

    python benchmarks/attention_quality.py --json attention_quality.json
    python benchmarks/attention_quality.py --json attention_quality.json --render

For every policy over budgets, and every cache layout, against dense attention over exact keys of the same model:
retrieval of seven of N records (exact match of each, one token a step and by confidence), masked NLL along denoising
of held-out text, steps per block, density. Rows are written one by one; a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sparse.retrieval import QUESTIONS, Questions, answer, questions
from sparse.trajectories import block_nll

import dlm_edge
from dlm_edge import files
from dlm_edge.evaluation.masked_nll import text_windows
from dlm_edge.runtime import Engine
from dlm_edge.runtime.attention import AttentionSettings

RECORDS = {"reference": 509, "reference-full": 253}
TEXT_TOKENS = {"reference": 512, "reference-full": 256}


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    layout: str = "kv"
    attention: dict[str, Any] = field(default_factory=dict)


def rows(prefix: int, *, full: bool = False) -> Iterator[Row]:
    """`prefix`: tokens of the retrieval prompt; budgets are shares of it. `full`: of a model with full attention."""
    yield Row("dense")
    for share in (32, 16, 8, 4):
        budget = prefix // share // 8 * 8
        for policy in ("quest", "mage", "losa"):
            yield Row(f"{policy} 1/{share}", attention={"policy": policy, "budget": budget})
        yield Row(f"losa 1/{share}, bounds", attention={"policy": "losa", "selector": "bounds", "budget": budget})
    for changed in (2, 3, 6):
        yield Row(f"flashblock {changed}", attention={"policy": "flashblock", "changed": changed})
    eighth = {"policy": "losa", "budget": prefix // 8 // 8 * 8}
    varied: dict[str, dict[str, Any]] = {
        "1 of 16 active": {"active": 1 / 16}, "3 of 16 active": {"active": 3 / 16}, "8 of 16 active": {"active": 8 / 16},
        "pages of 16": {"page_size": 16}, "pages of 32": {"page_size": 32}, "rows per head": {"per_head": True},
        "since stored": {"since_stored": True}, "drift 0.05": {"drift": 0.05}, "drift 0.2": {"drift": 0.2},
        "no forced pages": {"sink_pages": 0, "recent_pages": 0}, "1 dense layer": {"dense_layers": 1},
    }  # fmt: skip
    for name, change in varied.items():
        yield Row(f"losa 1/8, {name}", attention=eighth | change)
    yield Row("quest 1/8, pages of 16", attention=eighth | {"policy": "quest", "page_size": 16})
    for layout in ("kv-fp16", "kv-int8", "kv-int4", "kv-int4,group=128", "x-int8", "x-int4", "x-int3", "x-int2"):
        yield Row(f"{layout} dense", layout)
    yield Row("kv-int4x2 dense", "kv-int4x2")
    yield Row("kv-int4x2 dense, both planes", "kv-int4x2", {"planes": "both"})
    for bits in (4, 3, 2):
        yield Row(f"x-cl{bits} dense", f"x-cl{bits}")
    for layout in ("kv-int4", "kv-int4x2"):
        yield Row(f"{layout} losa 1/8", layout, eighth)
    for layout in ("x-int4", "x-cl3"):
        yield Row(f"{layout} losa 1/8, bounds", layout, eighth | {"selector": "bounds"})
    if not full:
        return
    yield Row("none dense", "none")
    for keep in (0.5, 0.3):
        sparsed = {"policy": "sparsed", "page_size": 32, "keep": keep}
        yield Row(f"none sparsed {keep}", "none", sparsed)


def measure(engine: Engine, row: Row, asked: list[Questions], windows: np.ndarray[Any, Any]) -> dict[str, Any]:
    model, spec = engine.parts.model, engine.spec
    attention, stores = AttentionSettings(**row.attention), row.layout != "none"
    found: dict[str, Any] = {"attention": {"policy": "dense"} | row.attention, "cache": row.layout}
    found["bytes_per_token"] = engine.parts.cache_bytes_per_position
    for name, threshold in (("one", 2.0), ("threshold", 0.9)):
        answered = [answer(model, spec.conventions, each, attention, threshold, stores=stores) for each in asked]
        right = np.array([each.right for each in answered]) / QUESTIONS
        stats = [each.stats for each in answered]
        found[name] = {
            "right": 100 * float(right.mean()),
            "right_se": 100 * float(right.std(ddof=1)) / math.sqrt(len(right)),
            "steps_per_block": sum(s.steps for s in stats) / sum(s.blocks for s in stats),
            "density": float(np.mean([s.density for s in stats])),
            "active_rows": float(np.mean([s.active_rows for s in stats])),
        }
        found[name + "_each"] = right.tolist()
    nll = [block_nll(model, spec, window, attention, n, stores=stores) for n, window in enumerate(windows)]
    found["nll"], found["nll_density"] = (float(np.mean(part)) for part in zip(*nll, strict=True))
    found["nll_each"] = [each for each, _ in nll]
    return found


def compare(found: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
    """Differences to dense attention over exact keys, sample by sample, with standard errors."""
    differences = {}
    for name, scale in (("one_each", 100.0), ("threshold_each", 100.0), ("nll_each", 100.0 / dense["nll"])):
        delta = scale * (np.array(found[name]) - np.array(dense[name]))
        error = float(delta.std(ddof=1)) / math.sqrt(len(delta))
        differences[name.removesuffix("_each")] = [float(delta.mean()), error]
    return differences


def table(results: dict[str, Any]) -> str:
    lines = []
    for model, found in results["models"].items():
        lines += [f"{model}: {RECORDS[model]} records, {results['samples']} prompts", ""]
        lines.append(
            "| attention and cache | right, one token a step | right, threshold 0.9 | steps per block | density | NLL | bytes/token |"
        )
        lines.append("|---|---|---|---|---|---|---|")
        for name, row in found.items():
            delta = compare(row, found["dense"])
            one, many = row["one"], row["threshold"]
            lines.append(
                f"| {name} | {one['right']:.1f} % ({delta['one'][0]:+.1f} ± {delta['one'][1]:.1f}) "
                f"| {many['right']:.1f} % ({delta['threshold'][0]:+.1f} ± {delta['threshold'][1]:.1f}) "
                f"| {many['steps_per_block']:.2f} | {one['density']:.3f} "
                f"| {delta['nll'][0]:+.2f} ± {delta['nll'][1]:.2f} % | {row['bytes_per_token']} |"
            )
        lines.append("")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> None:
    results: dict[str, Any] = json.loads(args.json.read_text()) if args.json.exists() else {"models": {}}
    results |= {"samples": args.samples, "windows": args.windows, "machine": platform.machine()}
    for model in args.models:
        found = results["models"].setdefault(model, {})
        pending = [row for row in rows(2 * RECORDS[model] + 4, full=model == "reference-full") if row.name not in found]
        with tempfile.TemporaryDirectory() as folder:
            for layout in dict.fromkeys(row.layout for row in pending):
                bundle = Path(folder) / layout.replace(",", "-")
                dlm_edge.export(model, bundle, cache=layout, profile="fp32")
                with Engine.open(bundle, threads=args.threads) as engine:
                    tokenizer = engine.parts.codec.tokenizer
                    asked = questions(tokenizer, RECORDS[model], args.samples)
                    windows, _ = text_windows(tokenizer, args.windows, TEXT_TOKENS[model])
                    for row in (each for each in pending if each.layout == layout):
                        started = time.perf_counter()
                        found[row.name] = measure(engine, row, asked, windows)
                        files.write_json(args.json, results)
                        delta = compare(found[row.name], found["dense"])
                        print(
                            f"{model:15} {row.name:32} {delta} {time.perf_counter() - started:.0f} s", file=sys.stderr
                        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("attention_quality.json"))
    parser.add_argument("--models", nargs="+", default=list(RECORDS), choices=list(RECORDS))
    parser.add_argument("--samples", type=int, default=100, help="prompts")
    parser.add_argument("--windows", type=int, default=48, help="of text")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--render", action="store_true", help="print the table of --json")
    args = parser.parse_args()
    if not args.render:
        run(args)
    print(table(json.loads(args.json.read_text())))


if __name__ == "__main__":
    main()
