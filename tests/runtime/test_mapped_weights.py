"""Weights of QLinear stay in the file: mapped, not copied, so that processes share them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dlm_edge import kernels
from dlm_edge.bundle import open_bundle
from dlm_edge.export import export
from dlm_edge.runtime import Engine
from tests.packed_folder import linear_roles, pack_folder, random_tensor
from tests.tiny import make_checkpoint

SMAPS = Path("/proc/self/smaps")


def mapped(file: Path) -> dict[str, int]:
    """KiB of this process's mappings of `file`, by field of smaps."""
    found: dict[str, int] = {}
    inside = False
    for line in SMAPS.read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(file))
        elif inside and line.endswith(" kB"):
            name, size = line.removesuffix(" kB").split(":")
            found[name] = found.get(name, 0) + int(size)
    return found


@pytest.mark.skipif(not SMAPS.is_file(), reason="needs Linux")
@pytest.mark.skipif(kernels.library_path() is None, reason="function bodies unpack the weights")
def test_weights_are_read_where_the_file_is_mapped(tmp_path):
    source = make_checkpoint(
        tmp_path / "source", "sdar", hidden_size=256, intermediate_size=2048, head_dim=64, tied=True
    )
    forms = {role: random_tensor((shape[0], shape[1]), 4, 64) for role, shape in linear_roles(source).items()}
    export(pack_folder(source, forms), tmp_path / "bundle", profile="w4a8")
    data = open_bundle(tmp_path / "bundle").graph_path.with_name("model.onnx.data")
    codes = sum(tensor.packed.nbytes for tensor in forms.values()) // 1024
    with Engine.open(tmp_path / "bundle") as engine:
        engine.generate("the", max_new_tokens=4, raw=True)
        found = mapped(data)
        assert found["Size"] >= codes and found["Rss"] >= 0.9 * codes  # read
        assert found["Private_Dirty"] == 0 and found["Shared_Dirty"] == 0  # and never written
