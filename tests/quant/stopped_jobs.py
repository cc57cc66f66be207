"""What the tests of stopping and resuming share: a stop at a chosen layer, a fault at every file call, what a folder holds.

The suite tries some of the file calls. Each single one of them, failed in every way, and how many they are:

    DLM_EDGE_EVERY_FAULT=1 python -m pytest -s tests/quant -k whichever_file_call     # some minutes
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dlm_edge.quant.job as job_module
from dlm_edge import files
from dlm_edge.errors import DlmEdgeError
from dlm_edge.journal import JOURNAL
from dlm_edge.quant import quantize
from tests.core.faulty_files import FaultyCalls, Killed

EVERY_FAULT = os.environ.get("DLM_EDGE_EVERY_FAULT", "0") not in ("", "0")


@dataclass(frozen=True, slots=True)
class Faults:
    """At call 1, 1 + stride, ... of those in `only` (None: of all) the job is killed, or the call fails with `error`."""

    kill: bool = False
    error: int = errno.ENOSPC
    only: Collection[str] | None = None
    stride: int = 1

    def __str__(self) -> str:
        return f"{'kill' if self.kill else errno.errorcode[self.error]} at {'/'.join(sorted(self.only or ['all']))}"


EVERY = [Faults(kill=True), Faults(error=errno.ENOSPC), Faults(error=errno.EIO)]


def faults_to_try(*some: Faults) -> list[Faults]:
    """The given ones, or those of every kind at every call."""
    return EVERY if EVERY_FAULT else list(some)


def fail_at_calls(
    monkeypatch: pytest.MonkeyPatch, source: Path, folder: Path, settings: dict[str, Any], faults: Faults
) -> int:
    """One job after the other in `folder`, until one meets no fault: that many file calls a job makes, +- the stride.

    After each fault no output stands under its name that is not whole, and the same command with `resume` comes to the
    bytes of an uninterrupted run and leaves nothing beside them.
    """
    quantize(source, folder / "clean", **settings)
    expected = hashes(folder / "clean")
    for k in itertools.count(1, faults.stride):
        out = folder / str(k) / "out"
        monkeypatch.setattr(files, "calls", FaultyCalls(k, kill=faults.kill, error=faults.error, only=faults.only))
        try:
            quantize(source, out, **settings)
        except Killed:
            faulty = True
        except DlmEdgeError as problem:
            assert problem.code == "E-IO"
            faulty = True
        else:
            faulty = False
        monkeypatch.setattr(files, "calls", FaultyCalls())
        if out.exists():
            assert {n: h for n, h in hashes(out).items() if n != JOURNAL} == expected
        if faulty:
            finish(source, out, settings)
        assert hashes(out) == expected
        assert os.listdir(out.parent) == ["out"]
        if not faulty:
            print(f"{faults}: {(k - 1) // faults.stride} faults with stride {faults.stride}")
            return k
    raise AssertionError("itertools.count has no end")


def finish(source: Path, out: Path, settings: dict[str, Any]) -> None:
    """The same command with --resume; done already is as good."""
    try:
        quantize(source, out, resume=True, **settings)
    except DlmEdgeError as problem:
        assert problem.code == "E-EXISTS" and out.exists()


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def stop_after(monkeypatch: pytest.MonkeyPatch, layers: int) -> None:
    """The job is interrupted when it is about to write the file of the layer after so many."""
    write = job_module.write_layer_file

    def write_or_stop(path, tensors):
        if path.name == f"layer-{layers:04}.safetensors":
            raise KeyboardInterrupt
        write(path, tensors)

    monkeypatch.setattr(job_module, "write_layer_file", write_or_stop)


def plant_nan(folder: Path, *names: str) -> None:
    """One NaN in each of these tensors of a checkpoint in one file."""
    tensors = load_file(folder / "model.safetensors")
    for name in names:
        tensors[name].flat[3] = np.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
