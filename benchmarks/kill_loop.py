"""A quantization job killed at random moments again and again: it always comes to the bytes of an uninterrupted one.

    python benchmarks/kill_loop.py --kills 50 --seed 0
    python benchmarks/kill_loop.py MODEL --kills 20 --method decoupleq --bits 2 --tune 8

Every run is a process of its own with one thread, ended by SIGKILL and resumed; one output may be killed many times.
Prints one JSON object; exits with 1 when any output differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Summary:
    kills: int = 0
    outputs: int = 0
    differing: list[str] = field(default_factory=list)  # "output 3: dlm_edge.json"
    killed_after: dict[str, int] = field(default_factory=dict)  # lines in the journal when killed: kills
    most_kills_of_one_output: int = 0
    seconds_of_one_run: float = 0.0
    seconds: float = 0.0


def run_job(model: Path, out: Path, settings: dict[str, Any]) -> None:
    """In a process of its own. Finished already, by a run that was killed while it closed, is as good."""
    import torch

    from dlm_edge.errors import DlmEdgeError
    from dlm_edge.quant import quantize

    torch.set_num_threads(1)
    try:
        quantize(model, out, resume=True, **settings)
    except DlmEdgeError as problem:
        if problem.code != "E-EXISTS" or not out.exists():
            raise


def kill_loop(model: Path, folder: Path, settings: dict[str, Any], *, kills: int, seed: int) -> Summary:
    """Outputs are made in `folder`, one after the other, until so many runs were killed. POSIX only.

    The moment of each kill is drawn evenly from the duration of an uninterrupted run, so a run that has less left to
    do often finishes before it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dlm_edge.quant.pipeline", "torch._dynamo"])  # a run then starts at once
    chance, summary, started = random.Random(seed), Summary(), time.monotonic()

    def start(out: Path) -> Any:
        process = context.Process(target=run_job, args=(model, out, settings))
        process.start()
        return process

    for name in ("warm-up", "whole"):  # the first starts the server
        began = time.monotonic()
        finish(start(folder / name))
        summary.seconds_of_one_run = round(time.monotonic() - began, 3)
    expected = hashes(folder / "whole")
    while summary.kills < kills:
        out, killed = folder / f"out-{summary.outputs}", 0
        while summary.kills < kills:
            process = start(out)
            process.join(chance.random() * summary.seconds_of_one_run)
            if process.exitcode is not None:
                finish(process)
                break
            process.kill()
            process.join()
            killed, summary.kills = killed + 1, summary.kills + 1
            lines = str(journal_lines(out))
            summary.killed_after[lines] = summary.killed_after.get(lines, 0) + 1
        finish(start(out))
        found = hashes(out)
        names = sorted(n for n in {*expected, *found} if expected.get(n) != found.get(n))
        summary.differing += [f"{out.name}: {name}" for name in names]
        summary.outputs += 1
        summary.most_kills_of_one_output = max(summary.most_kills_of_one_output, killed)
        shutil.rmtree(out)
    summary.killed_after = dict(sorted(summary.killed_after.items(), key=lambda item: int(item[0])))
    summary.seconds = round(time.monotonic() - started, 1)
    return summary


def finish(process: Any) -> None:
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"a run that was not killed ended with {process.exitcode}")


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def journal_lines(out: Path) -> int:
    """-1: the output stands already under its name."""
    journal = out.with_name(out.name + ".partial") / "journal.jsonl"
    if out.exists():
        return -1
    return journal.read_bytes().count(b"\n") if journal.is_file() else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a checkpoint folder; default: a tiny random one")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="awq+gptq")
    parser.add_argument("--bits", type=float, default=3)
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--tune", type=int, default=2, help="steps of block tuning")
    parser.add_argument("--calib-tokens", type=int, default=1024)
    given = parser.parse_args()
    settings = {"method": given.method, "bits": given.bits, "group_size": given.group_size, "tune": given.tune}
    settings |= {"calib_tokens": given.calib_tokens, "imatrix": True}
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), given.model
        if model is None:
            from random_checkpoint import write_checkpoint

            model = write_checkpoint(folder / "model", "tiny")
        summary = kill_loop(model, folder, settings, kills=given.kills, seed=given.seed)
    print(json.dumps(asdict(summary)))
    return 1 if summary.differing else 0


if __name__ == "__main__":
    sys.exit(main())
