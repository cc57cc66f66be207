"""The table of docs/models.md, from `dlm_edge.estimate`: `python tools/write_models.py`, with --check only compare.

A checkpoint of each released shape is made of its config and a header; the weights are a hole in the file, since an
estimate reads headers alone. Times are left out: they depend on the machine.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from page_tables import write_tables

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dlm_edge.checkpoint.opening import open_checkpoint  # noqa: E402 - only now it is on the path
from dlm_edge.estimation import estimate  # noqa: E402
from dlm_edge.families import find_family  # noqa: E402
from dlm_edge.families.roles import role_shapes  # noqa: E402
from dlm_edge.families.settings import Settings  # noqa: E402
from dlm_edge.inspection import parameter_count  # noqa: E402
from tests.families.test_families import RELEASED  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- table of tools/write_models.py -->\n", "<!-- end of table -->\n"
NAMES = {"llada": "LLaDA-8B", "dream": "Dream-7B", "sdar": "SDAR-4B", "fast_dllm_v2": "Fast-dLLM v2 7B"}
CONTEXT, RECIPE = 4096, "w4"
MACHINES_GIB = (4, 8, 16, 24, 32, 64)
SYSTEM_GIB = 2.5  # left to the system and to what else runs
HEAD = f"""\
| model | parameters | download | with `{RECIPE}` | memory to run | with the smallest cache | machine to run | machine to quantize |
|---|---|---|---|---|---|---|---|
"""


def table() -> str:
    with tempfile.TemporaryDirectory() as folder:
        return HEAD + "".join(row(Path(folder) / family, NAMES[family], RELEASED[family]) for family in sorted(NAMES))


def row(folder: Path, name: str, config: Mapping[str, Any]) -> str:
    download = make_checkpoint(folder, dict(config))
    found = estimate(folder, contexts=[CONTEXT], recipe=RECIPE)
    assert found.quantize is not None and found.export is not None
    usual = next(each for each in found.run if each.cache == "kv-fp32")
    least = min(found.run, key=lambda each: each.ram_bytes)
    parameters = parameter_count(open_checkpoint(folder).spec)
    cells = [name, f"{parameters / 1e9:.1f} B", size(download), size(found.export["disk_bytes"]), size(usual.ram_bytes)]
    cells += [f"{size(least.ram_bytes)} (`{least.cache}`)", machine(least.ram_bytes)]
    cells += [machine(found.quantize["ram_bytes"])]
    return "| " + " | ".join(cells) + " |\n"


def size(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.1f} GiB"


def machine(needed: float) -> str:
    fitting = [size for size in MACHINES_GIB if needed / 2**30 + SYSTEM_GIB <= size]
    return f"{fitting[0]} GB" if fitting else "more than 64 GB"


def make_checkpoint(folder: Path, config: dict[str, Any]) -> int:
    """Bytes of the weights, which take no space."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}), encoding="utf-8")
    family = find_family(config, folder.name)
    shapes = role_shapes(family.read_spec(Settings(config, folder.name)))
    header, at = {}, 0
    for role, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[family.tensor_name(role)] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return at


def main(arguments: list[str]) -> int:
    return write_tables(PAGE, table(), BEGIN, END, "write_models", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
