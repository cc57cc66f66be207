"""Measured rows on disk: a JSON file with what a table shows, and beside it an .npz with one entry per window."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.errors import InputFileError


class Results:
    """Grows by one row at a time, each written at once, so that a run that was cut off goes on where it stopped."""

    def __init__(self, path: Path, conditions: dict[str, Any]) -> None:
        """`conditions` are what has to be equal for rows to be compared. Raises E-RESUME when the file has others."""
        self.path, self.arrays_path = path, path.with_suffix(".npz")
        self.content: dict[str, Any] = {"conditions": conditions, "rows": {}}
        self.arrays: dict[str, NDArray[np.float64]] = {}
        if path.exists():
            self.content = json.loads(path.read_text())
            found = self.content["conditions"]
            if found != conditions:
                different = [k for k in conditions if found.get(k) != conditions[k]]
                message = f"{path} was measured under other conditions ({', '.join(different)})"
                raise InputFileError("E-RESUME", message, "give the same options, or another --json")
            with np.load(self.arrays_path) as stored:
                self.arrays = dict(stored)

    @staticmethod
    def key(model: str, name: str, seed: int) -> str:
        return f"{model}|{name}|{seed}"

    def __contains__(self, key: str) -> bool:
        return key in self.content["rows"]

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        rows: dict[str, dict[str, Any]] = self.content["rows"]
        return rows

    def add(self, key: str, row: dict[str, Any], arrays: dict[str, NDArray[np.float64]]) -> None:
        """Arrays first: a row is finished when the JSON file lists it."""
        self.arrays |= {f"{key}|{name}": values for name, values in arrays.items()}
        self.rows[key] = row
        draft = self.arrays_path.with_suffix(".tmp.npz")
        np.savez(draft, allow_pickle=False, **self.arrays)  # type: ignore[arg-type]
        os.replace(draft, self.arrays_path)
        text = self.path.with_suffix(".tmp")
        text.write_text(json.dumps(self.content, indent=1))
        os.replace(text, self.path)

    def arrays_of(self, key: str, prefix: str) -> dict[str, NDArray[np.float64]]:
        start = f"{key}|{prefix}/"
        return {k.removeprefix(start): v for k, v in self.arrays.items() if k.startswith(start)}
