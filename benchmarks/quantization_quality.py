"""What quantization costs in quality: every method of ours and of the peer packages on the same model, data and states.

    python benchmarks/quantization_quality.py --json quality.json --seeds 0 1 2 --peers PEERS_FOLDER
    python benchmarks/quantization_quality.py --json quality.json --render

Rows are written one by one; a run that was cut off goes on where it stopped. `--list` shows their names, `--rows`
chooses among them (a regular expression). benchmarks/peers/setup.sh makes PEERS_FOLDER. docs/quality.md says how every
column is measured.
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality import decisions, scoring, states, table
from quality.candidates import Candidate, Workshop
from quality.results import Results
from quality.settings import Setting, all_settings

from dlm_edge.checkpoint import Checkpoint, open_checkpoint
from dlm_edge.errors import DlmEdgeError
from dlm_edge.models import load_model
from dlm_edge.models.transformer import DiffusionTransformer
from dlm_edge.quant.calibration import read_tokenizer

FULL = "full precision"
FLIP_SHARE = 4  # commit flips are counted on the first 1 / FLIP_SHARE of the samples that are decoded


class Yardstick:
    """One model in full precision, the held-out states and the denoising runs by which others are measured."""

    def __init__(self, source: Checkpoint, windows: int, samples: int, decoded: int) -> None:
        self.source, self.model = source, load_model(source.path)
        self.tokenizer = read_tokenizer(source)
        rows = states.evaluation_rows(self.tokenizer, self.model, windows, samples)
        self.states = {kind: states.hidden_tokens(self.model, r) for kind, r in rows.items()}
        self.samples = states.short_samples(decoded)
        self.recording = decisions.record(self.model, self.tokenizer, self.samples[: len(self.samples) // FLIP_SHARE])

    def measure(self, model: DiffusionTransformer) -> tuple[dict[str, Any], dict[str, Any]]:
        """A row's figures, and the arrays behind them as `kind/name`."""
        row: dict[str, Any] = {}
        arrays: dict[str, Any] = {}
        for kind, hidden in self.states.items():
            sums = scoring.score(model, hidden)
            row[kind] = scoring.summary(sums)
            arrays |= {f"{kind}/{name}": values for name, values in sums.items()}
        flips, n_states = decisions.count_flips(model, self.recording)
        correct = decisions.exact_match(model, self.tokenizer, self.samples)
        row |= {"flips": 100 * flips.sum() / n_states.sum(), "exact_match": 100 * correct.mean()}
        return row, arrays | {"flips/flips": flips, "flips/states": n_states, "match/correct": correct}


def wanted(args: argparse.Namespace) -> Iterator[Setting]:
    pattern = re.compile(args.rows or "")
    for setting in all_settings(args.bits, args.group_sizes):
        if pattern.search(setting.name) and (setting.source != "peer" or args.peers or args.list):
            yield setting


def measure_model(name: str, args: argparse.Namespace, results: Results, folder: Path) -> list[str]:
    """Adds the missing rows of one model; returns what failed."""
    tasks = [(s, seed) for s in wanted(args) for seed in (args.seeds[:1] if s.data_free else args.seeds)]
    tasks = [(s, seed) for s, seed in tasks if results.key(name, s.name, seed) not in results]
    full = results.key(name, FULL, args.seeds[0])
    if not tasks and full in results:
        return []
    source = open_model(name, args.inject, folder)
    yardstick = Yardstick(source, args.windows, args.samples, args.decoded)
    workshop = Workshop(source, yardstick.model, folder, args.peers)
    if full not in results:
        add(results, full, yardstick, Candidate(yardstick.model, 32.0, 0.0, None), FULL, 32)
    failed = []
    for setting, seed in tasks:
        key = results.key(name, setting.name, seed)
        try:
            candidate = workshop.make(setting, seed)
        except DlmEdgeError as error:
            failed.append(f"{key}: {error.message}")
            print(f"failed    {failed[-1]}", file=sys.stderr, flush=True)
            continue
        add(results, key, yardstick, candidate, setting.source, setting.bits)
    return failed


def add(results: Results, key: str, yardstick: Yardstick, candidate: Candidate, source: str, bits: int) -> None:
    started = time.perf_counter()
    row, arrays = yardstick.measure(candidate.model)
    row |= {"source": source, "bits": bits, "bits_per_weight": candidate.bits_per_weight, "seconds": candidate.seconds}
    row |= {"peak_mib": candidate.peak_mib, "about": candidate.about}
    results.add(key, row, arrays)
    text, tasks = row["text"], row["tasks"]
    print(
        f"{key:60} {candidate.bits_per_weight:5.2f}  text {text['increase']:7.2f} ± {text['increase_error']:.2f} %  "
        f"tasks {tasks['increase']:7.2f} ± {tasks['increase_error']:.2f} %  flips {row['flips']:5.1f} %  "
        f"match {row['exact_match']:5.1f} %  {candidate.seconds:5.0f} s + {time.perf_counter() - started:.0f} s",
        file=sys.stderr,
        flush=True,
    )


def open_model(name: str, inject: float | None, folder: Path) -> Checkpoint:
    """The checkpoint, or the same function with outliers of `inject` times their size planted into its weights."""
    if inject is None:
        return open_checkpoint(name)
    from dlm_edge.quant.outlier_injection import inject_outliers

    out = folder / "injected"
    inject_outliers(open_checkpoint(name).path, out, scale=inject)
    return open_checkpoint(out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("quality.json"))
    parser.add_argument("--models", nargs="+", default=["reference", "reference-full"])
    parser.add_argument("--rows", metavar="PATTERN", help="only settings whose name matches")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each draws other calibration data")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="measure peer packages installed by setup.sh")
    parser.add_argument("--inject", type=float, metavar="SCALE", help="plant outliers first (same full precision)")
    parser.add_argument("--quick", action="store_true", help="a third of the held-out states")
    parser.add_argument("--list", action="store_true", help="show the names of the rows")
    parser.add_argument("--render", action="store_true", help="print the tables of --json")
    args = parser.parse_args()
    args.windows, args.samples, args.decoded = (24, 10, 12) if args.quick else (64, 60, 40)  # samples: of each task
    return args


def main() -> int:
    args = parse()
    if args.list:
        print("\n".join(setting.name for setting in wanted(args)))
        return 0
    conditions = {"windows": args.windows, "samples": args.samples, "decoded": args.decoded, "inject": args.inject}
    conditions |= {"torch": torch.__version__, "numpy": np.__version__}
    conditions |= {"machine": platform.processor() or platform.machine()}
    results = Results(args.json, conditions)
    if args.render:
        print(table.render(results))
        print(table.against_peers(results))
        return 0
    failed = []
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            failed += measure_model(name, args, results, Path(folder))
    print(f"{len(results.rows)} rows in {args.json}, {len(failed)} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DlmEdgeError as error:
        print(f"quantization_quality: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
