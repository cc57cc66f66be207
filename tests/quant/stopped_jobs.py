"""What the tests of stopping and resuming share: a stop at a chosen layer, and what a folder holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dlm_edge.quant.job as job_module


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
