"""What each sampler saves in steps and costs in right answers, task by task, against `static`.

    python benchmarks/decoding.py --model reference --json decoding.json
    python benchmarks/decoding.py --json decoding.json --render docs/images/decoding.svg

Every sampler answers the same questions of every task and seed: exact match with its standard error of the paired
difference to `static`, forward passes per generated token (prefill and stored blocks included), and effective tokens per
second of processor time on one thread, as a ratio to `static` asked in turns with it. Rows are written as they are
finished; a run that was cut off goes on, and samplers that are new are added.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from schedules.measure import measure
from schedules.report import markdown, plot
from schedules.settings import Row, rows

import dlm_edge
from dlm_edge import files
from dlm_edge.artifacts import resolve_bundle
from dlm_edge.benchmark import processor
from dlm_edge.evaluation.evaluate import read_tokenizer
from dlm_edge.evaluation.tasks import SHORT_TASKS
from dlm_edge.runtime import Engine
from dlm_edge.runtime.samplers import SAMPLERS

MODELS = ("reference", "reference-full")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def key(model: str, task: str, seed: int, row: str) -> str:
    return f"{model}/{task}/{seed}/{row}"


def open_bundle_of(model: str, folder: Path, wanted: Collection[Row]) -> Path:
    """The exported model; for `learn2pd` a copy with a filter, trained on other prompts."""
    if not any(row.settings["sampler"] == "learn2pd" for row in wanted):
        return resolve_bundle(model)
    copied = folder / model
    shutil.copytree(resolve_bundle(model), copied)
    began = time.process_time()
    dlm_edge.train_filter(copied, progress=say)
    say(f"{model}: filter trained in {time.process_time() - began:.0f} s of processor time")
    return copied


def run(args: argparse.Namespace) -> None:
    path = Path(args.json)
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else start(args)
    wanted = {row.name: row for row in rows(args.model) if row.settings["sampler"] in (args.sampler or SAMPLERS)}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        bundle = open_bundle_of(args.model, Path(scratch), wanted.values())
        tokenizer = read_tokenizer(bundle)
        guides = {row.guide for row in wanted.values()} | {None}
        opened: dict[str | None, Engine] = {}
        for guide in guides:
            options = {} if guide is None else {"guide": resolve_bundle(guide)}
            opened[guide] = stack.enter_context(Engine.open(bundle, threads=1, **options))
        for seed in range(args.seeds):
            for task in args.task or SHORT_TASKS:
                missing: list[Row] = [
                    row for name, row in wanted.items() if key(args.model, task, seed, name) not in report["rows"]
                ]
                if not missing:
                    continue
                found = measure(opened, tokenizer, missing, task, args.samples, seed, say)
                for name, answers in found.items():
                    report["rows"][key(args.model, task, seed, name)] = asdict(answers)
                files.write_json(path, report)
                say(f"{args.model}: {task}, seed {seed} done")


def start(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": processor(),
        "system": platform.platform(),
        "samples": args.samples,
        "rows": {},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="reference")
    parser.add_argument("--json", required=True)
    parser.add_argument("--samples", type=int, default=170, help="per task and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--task", action="append", choices=list(SHORT_TASKS))
    parser.add_argument("--sampler", action="append", choices=list(SAMPLERS))
    parser.add_argument("--render", metavar="SVG", help="print the tables of --json, and write the plot")
    args = parser.parse_args()
    if args.render:
        report = json.loads(Path(args.json).read_text())
        print(markdown(report))
        files.write_file(Path(args.render), plot(report))
    else:
        run(args)


if __name__ == "__main__":
    main()
