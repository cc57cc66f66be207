"""The peer's forwards: taken in turns with ours where it is installed, and as published, scaled to this machine."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .timing import Times

SCRIPT = Path(__file__).resolve().parent.parent / "peers" / "llama_cpp_peer.py"
LONGEST_REPLY_S = 300.0

# Seconds of a forward of llama.cpp, all logits, by shape, quantization, positions and threads; and the int8 peak in GOP/s
# at 128 rows by threads. All measured on one other machine with AMX, which was otherwise idle.
PUBLISHED = {
    ("dream-0.5b", "q4_0", 192, 1): 0.684,
    ("dream-0.5b", "q4_0", 192, 2): 0.374,
    ("dream-0.5b", "q4_0", 1152, 2): 3.4,
    ("dream-1.5b", "q4_0", 192, 2): 1.274,
    ("dream-1.5b", "q8_0", 192, 2): 1.090,
}
PUBLISHED_INT8 = {1: 1307.0, 2: 2136.0}
PEAK_ROWS = "128"


def scaled(shape: str, quantization: str, positions: int, threads: int, peaks: dict[str, Any]) -> float | None:
    """The published seconds by what this machine's int8 peak is of that one's; None where nothing is published."""
    found = PUBLISHED.get((shape, quantization, positions, threads))
    return None if found is None else found * PUBLISHED_INT8[threads] / peaks["int8"][PEAK_ROWS]["value"]


@dataclass(frozen=True, slots=True)
class PeerPlace:
    """`python` of the environment that has llama-cpp-python, and the folder of its model files."""

    python: Path
    models: Path


class Peer:
    """A process that has one model open and answers requests; it ends with the block."""

    def __init__(self, place: PeerPlace, shape: str, quantization: str) -> None:
        command = [str(place.python), str(SCRIPT), "--shape", shape, "--quantization", quantization]
        command += ["--models", str(place.models), "--serve"]
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "OMP_NUM_THREADS")}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.about: dict[str, Any] = {}

    def forward(self, positions: int, threads: int, logits: str = "all") -> Times:
        """One forward; the first of its kind is preceded by one that is not timed."""
        assert self.process.stdin is not None and self.process.stdout is not None
        request = {"positions": positions, "threads": threads, "logits": logits}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer ended with {self.process.wait()}")
        reply = json.loads(line)
        self.about = {key: reply[key] for key in ("package", "system_info", "head", "bytes_by_type", "n_parameters")}
        return Times(reply["seconds"]["median"], reply["cpu_seconds"]["median"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(LONGEST_REPLY_S)
