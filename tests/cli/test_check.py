"""`dlm-edge check`: whole folders pass, and each planted damage is found with its code."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dlm_edge.checking import check
from dlm_edge.cli import main
from dlm_edge.errors import CODES
from tests.tiny import make_checkpoint


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    from dlm_edge.quant import quantize

    folder = tmp_path_factory.mktemp("quantized")
    quantize(make_checkpoint(folder / "source", "sdar"), folder / "packed", method="rtn", bits=4, group_size=32)
    return folder / "packed"


@pytest.fixture
def copy(tmp_path):
    return lambda folder: shutil.copytree(folder, tmp_path / "copy")


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def codes(folder):
    found = check(folder)
    assert found.ok == (not found.findings) and all(f.code in CODES and f.message and f.hint for f in found.findings)
    return [finding.code for finding in found.findings]


@pytest.mark.parametrize("kind", ["bundle", "quantized", "checkpoint"])
def test_whole_folders_pass(kind, request, capsys):
    folder = request.getfixturevalue(kind)
    assert main(["check", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["kind"] == kind and found["findings"] == [] and len(found["checked"]) >= 2
    assert main(["check", str(folder), "-q"]) == 0
    output = capsys.readouterr()
    assert "ok" in output.out and output.err == ""


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json", "chat_template.jinja"])
def test_one_changed_bit_of_a_bundle_is_found(bundle, copy, name):
    folder = copy(bundle)
    flip(folder / name, -5)
    assert codes(folder) == ["E-MANIFEST"]


def test_a_bundle_that_lacks_a_file_or_whose_manifest_is_torn(bundle, copy, capsys):
    folder = copy(bundle)
    (folder / "model.onnx.data").unlink()
    assert main(["check", str(folder), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"] and [f["code"] for f in found["findings"]] == ["E-MANIFEST"]
    (folder / "manifest.json").write_text("{")
    assert codes(folder) == ["E-MANIFEST"]


def test_a_graph_that_does_not_open_is_found_though_its_hash_is_right(bundle, copy):
    import hashlib

    folder = copy(bundle)
    broken = (folder / "model.onnx").read_bytes()[:-200]
    (folder / "model.onnx").write_bytes(broken)
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["name"] == "model.onnx":
            entry |= {"size": len(broken), "sha256": hashlib.sha256(broken).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert codes(folder) == ["E-ONNX"]


def test_every_bad_weight_is_a_finding(quantized, copy, checkpoint, tmp_path):
    folder = copy(quantized)
    path = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(path)
    scales = [name for name in tensors if "scale" in name]
    assert len(scales) > 2
    for name in scales[:2]:
        tensors[name] = tensors[name].copy()
        tensors[name].flat[3] = np.nan
    save_file(tensors, path)
    assert codes(folder) == ["E-NAN", "E-NAN"]
    plain = shutil.copytree(checkpoint, tmp_path / "plain")
    weights = plain / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2:] = b"\xc0\x7f"  # NaN in bfloat16
    weights.write_bytes(data)
    assert codes(plain) == ["E-NAN"]


def test_a_record_that_does_not_fit_its_tensors(quantized, copy):
    folder = copy(quantized)
    record = json.loads((folder / "dlm_edge.json").read_text())
    next(layer for layer in record["layers"] if layer["bits"] == 4)["bits"] = 8
    (folder / "dlm_edge.json").write_text(json.dumps(record))
    assert codes(folder) == ["E-TENSOR"]


def test_no_folder_at_all(capsys):
    assert main(["check", "/no/such/folder"]) == 3
    assert "E-CONFIG" in capsys.readouterr().out
