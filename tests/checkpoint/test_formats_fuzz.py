"""Configs and tensors of foreign checkpoints changed at random: an InputFileError, or finite weights; nothing else."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.errors import InputFileError
from tests.checkpoint.test_formats_checkpoints import FORMATS, make
from tests.foreign import edit_config, edit_tensors, linear_roles

JUNK = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    8,
    2**31,
    2**70,
    0.5,
    "",
    "x",
    "gptq",
    "4",
    [],
    [1],
    {},
    {"a": 1},
    {"+:": {"bits": 2}},
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key in a JSON value."""
    found: list[tuple[Any, Any]] = []
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []:
        found += [(value, key), *places(value[key])]
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_configs(tmp_path: Path, format: str) -> None:
    make(tmp_path, "sdar", format)
    good = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    rng, refused = random.Random(0), 0
    for _ in range(120):
        config = json.loads(json.dumps(good))
        for _ in range(rng.randint(1, 2)):
            container, key = rng.choice(places(config) or [(config, "quant_method")])
            container[key] = rng.choice(JUNK)
        edit_config(tmp_path, quantization_config=config)
        refused += not opens(tmp_path)
    assert refused > 60


@pytest.mark.parametrize("format", FORMATS)
def test_tensors(tmp_path: Path, format: str) -> None:
    make(tmp_path, "sdar", format)
    whole = (tmp_path / "model.safetensors").read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(40):

        def change(tensors: dict[str, np.ndarray]) -> None:
            name = sorted(n for n in tensors if ".layers.0." in n and "norm" not in n)[rng.integers(20)]
            octets = np.frombuffer(tensors[name].tobytes(), np.uint8).copy()
            octets[rng.integers(len(octets), size=4)] = rng.integers(256, size=4)
            tensors[name] = octets.view(tensors[name].dtype).reshape(tensors[name].shape)

        edit_tensors(tmp_path, change)
        refused += not opens(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(whole)
    assert refused < 40


def opens(folder: Path) -> bool:
    try:
        checkpoint = open_checkpoint(folder)
        for role in linear_roles(checkpoint)[:7]:
            assert np.isfinite(checkpoint.load(role)).all()
    except InputFileError as error:
        assert error.hint
        return False
    return True
