"""What `estimate` says beside what happens: sizes of written files, and the largest size of a process that generates."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dlm_edge.cli import main
from dlm_edge.errors import UsageProblem
from dlm_edge.estimation import estimate
from dlm_edge.export import export
from dlm_edge.memory import rss_bytes
from dlm_edge.quant import quantize
from tests.tiny import make_checkpoint

GENERATE = """
import json, sys
from dlm_edge.memory import peak_rss_bytes
from dlm_edge.runtime import Engine
with Engine.open(sys.argv[1], threads=1) as engine:
    prompt = [5 + i % 1000 for i in range(int(sys.argv[2]) - 16)]
    engine.generate(prompt, max_new_tokens=16, stop_at_eos=False, sampler="static", steps=2)
print(peak_rss_bytes())
"""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimation")
    for layout in ("kv-fp32", "kv-int4", "x-int4"):
        export("reference", folder / layout, cache=layout, profile="fp32")
    for layout in ("kv-fp16", "kv-int4", "x-int4"):
        export("reference-full", folder / f"full-{layout}", cache=layout, profile="fp32")
    return folder


@pytest.mark.skipif(not rss_bytes(), reason="the system does not tell the size of a process")
@pytest.mark.parametrize("layout", ["kv-fp32", "kv-int4", "x-int4", "full-kv-fp16", "full-kv-int4", "full-x-int4"])
@pytest.mark.parametrize("context", [256, 2048])
def test_memory_of_a_run_is_what_a_process_takes(bundles, layout, context):
    command = [sys.executable, "-c", GENERATE, str(bundles / layout), str(context)]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    row = next(row for row in estimate(bundles / layout, contexts=[context]).run if row.is_own)
    assert row.ram_bytes == pytest.approx(peak, rel=0.15)


def test_a_bundle_is_as_large_as_estimated(bundles):
    found = estimate("reference", recipe="none", contexts=[512], caches=["kv", "x-int4"])
    own = [estimate(bundles / layout, contexts=[512]).run[0] for layout in ("kv-fp32", "x-int4")]
    for row, there in zip(found.run, own, strict=True):
        assert row.cache == there.cache and there.is_own and not row.is_own
        assert row.weight_bytes == pytest.approx(there.weight_bytes, rel=0.02)
    written = sum(file.stat().st_size for file in (bundles / "kv-fp32").iterdir())
    assert found.export["disk_bytes"] == pytest.approx(written, rel=0.02)


def test_sizes_of_a_recipe_are_those_of_its_result(tmp_path):
    source = make_checkpoint(tmp_path / "source", "llada", hidden_size=128, head_dim=32, intermediate_size=2048)
    quantize(source, tmp_path / "packed", method="rtn", bits=4, group_size=64)  # the form of w4
    export(tmp_path / "packed", tmp_path / "bundle")
    planned, packed, bundle = (estimate(path) for path in (source, tmp_path / "packed", tmp_path / "bundle"))
    assert [each.kind for each in (planned, packed, bundle)] == ["checkpoint", "quantized", "bundle"]
    assert planned.recipe == "w4" and planned.quantize["seconds"] > 0
    assert packed.quantize is None and bundle.export is None
    assert planned.export == packed.export
    assert planned.run[0].weight_bytes == pytest.approx(bundle.run[0].weight_bytes, rel=0.05)
    written = sum(file.stat().st_size for file in (tmp_path / "packed").glob("*.safetensors"))
    assert written < planned.quantize["disk_bytes"] < written + (64 << 20)


def test_every_layout_that_fits_is_listed_once_and_more_context_takes_more():
    rows = estimate("reference", contexts=[512, 2048]).run
    small, large = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    names = [row.cache for row in small]
    assert names == [row.cache for row in large] and len(set(names)) == len(names)
    assert "x-latent-int4" in names and "x-int4" not in names and "none" not in names  # grouped heads, blocks
    assert all(a.ram_bytes < b.ram_bytes for a, b in zip(small, large, strict=True))
    full = [row.cache for row in estimate("reference-full", contexts=[512]).run]
    assert "x-int4" in full and "none" in full and "x-latent-int4" not in full


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"contexts": [1 << 20]}, "E-CONTEXT"),
        ({"contexts": [0]}, "E-PARAM"),
        ({"caches": ["kv-int5"]}, "E-PARAM"),
        ({"recipe": "w5"}, "E-USAGE"),
    ],
)
def test_what_cannot_be_is_refused(options, code):
    with pytest.raises(UsageProblem) as caught:
        estimate("reference", **options)
    assert caught.value.code == code


def test_a_bundle_takes_no_recipe(bundles):
    with pytest.raises(UsageProblem) as caught:
        estimate(bundles / "kv-fp32", recipe="w4")
    assert caught.value.code == "E-USAGE"


def test_the_command_prints_the_promised_keys(bundles, capsys):
    assert main(["estimate", "reference", "--context", "512", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"ram_bytes", "disk_bytes", "seconds"} <= set(report["quantize"])
    assert {"ram_bytes", "disk_bytes"} <= set(report["export"])
    assert {"context", "cache", "ram_bytes", "cache_bytes_per_token"} <= set(report["run"][0])
    assert main(["estimate", str(bundles / "kv-int4"), "--context", "512"]) == 0
    text = capsys.readouterr().out
    assert "kv-int4 (exported)" in text and "quantize" not in text


def test_a_bundle_needs_neither_torch_nor_onnx(bundles):
    code = """
import sys
from dlm_edge.estimation import estimate
estimate(sys.argv[1])
assert not {"torch", "onnx"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(bundles / "kv-fp32")], check=True)
