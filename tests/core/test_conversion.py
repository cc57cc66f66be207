"""Our quantized checkpoints in the layouts of others: the same weights come back, or a refusal before any file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlm_edge
from dlm_edge import converted_folder, files
from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.checkpoint.formats.imatrix import read_imatrix, write_imatrix
from dlm_edge.cli.program import main
from dlm_edge.conversion import FORMATS, convert
from dlm_edge.errors import DlmEdgeError
from dlm_edge.files import FileCalls
from dlm_edge.quantized import OutlierColumns, PackedWeight, QuantizedTensor, pack
from dlm_edge.work_folder import recover
from tests.core.faulty_files import FaultyCalls, Killed
from tests.foreign import linear_roles, random_codebook, random_weight
from tests.packed_folder import pack_folder
from tests.tiny import make_checkpoint

FOLDERS = tuple(format for format in FORMATS if format != "imatrix")


def make_packed(folder: Path, family: str, outer: bool = False, **keys: Any) -> Path:
    """Every linear layer packed alike; with `outer` embedding and head in 8 bits."""
    make_checkpoint(folder, family, n_layers=2, tied=False)
    plain = open_checkpoint(folder)
    settings = {"bits": 4, "group_size": 32} | keys
    packed: dict[str, PackedWeight] = {
        role: random_weight(plain.shape(role), seed=i, **settings) for i, role in enumerate(linear_roles(plain))
    }
    if outer:
        packed |= {
            role: random_weight(plain.shape(role), 8, 32, symmetric=True) for role in ("embed.weight", "head.weight")
        }
    return pack_folder(folder, packed)


def assert_equal_weights(one: Path, other: Path) -> None:
    ours, theirs = open_checkpoint(one), open_checkpoint(other)
    assert ours.roles() == theirs.roles()
    for role in ours.roles():
        if role in ("embed.weight", "head.weight"):
            np.testing.assert_array_equal(theirs.load(role), ours.load(role).astype(np.float16).astype(np.float32))
        else:
            np.testing.assert_array_equal(theirs.load(role), ours.load(role))


CASES = [
    *((f, bits, symmetric, order) for f in ("gptq", "gptq_v2") for bits in (2, 3, 4, 8)
      for symmetric, order in ((True, False), (True, True))),
    *(("gptq_v2", bits, False, order) for bits in (2, 3, 4, 8) for order in (False, True)),
    ("awq", 4, True, False), ("awq", 4, False, False),
    *(("compressed-tensors", bits, symmetric, False) for bits in (2, 3, 4, 8) for symmetric in (True, False)),
]  # fmt: skip


@pytest.mark.parametrize(("format", "bits", "symmetric", "order"), CASES)
def test_the_weights_come_back(tmp_path: Path, format: str, bits: int, symmetric: bool, order: bool) -> None:
    source = make_packed(tmp_path / "ours", "sdar", bits=bits, symmetric=symmetric, reordered=order)
    report = convert(source, tmp_path / "theirs", format=format)
    assert_equal_weights(source, tmp_path / "theirs")
    assert report.layers == 14 and report.notes == []
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == format.removesuffix("_v2")
    assert config["dtype"] == config["torch_dtype"] == ("float16" if format == "awq" else "bfloat16")


@pytest.mark.parametrize("format", FOLDERS)
def test_llada_with_packed_embedding_and_head(tmp_path: Path, format: str) -> None:
    source = make_packed(tmp_path / "ours", "llada", outer=True, symmetric=True)
    said: list[str] = []
    report = convert(source, tmp_path / "theirs", format=format, progress=said.append)
    assert_equal_weights(source, tmp_path / "theirs")
    assert len(report.notes) == 1 and "model.transformer.wte.weight" in report.notes[0]
    assert any(report.notes[0] in line for line in said)
    theirs = open_checkpoint(tmp_path / "theirs", need_tokenizer=True)
    assert theirs.dtype("embed.weight") == theirs.dtype("head.weight") == "F16"
    copied = {p.name for p in (tmp_path / "theirs").iterdir()}
    assert copied >= {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"}
    assert not copied & {"dlm_edge.json", "journal.jsonl", "model.safetensors.index.json"}


def test_large_checkpoints_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_packed(tmp_path / "ours", "dream", symmetric=True)
    monkeypatch.setattr(converted_folder, "SHARD_BYTES", 30_000)
    convert(source, tmp_path / "theirs", format="gptq")
    assert len(list((tmp_path / "theirs").glob("model-*-of-*.safetensors"))) > 3
    assert_equal_weights(source, tmp_path / "theirs")


def test_each_format_to_each_other(tmp_path: Path) -> None:
    source = make_packed(tmp_path / "0", "sdar", symmetric=False)
    before = source
    for i, format in enumerate(("gptq_v2", "awq", "compressed-tensors", "awq", "gptq_v2", "compressed-tensors"), 1):
        convert(before, tmp_path / str(i), format=format)
        before = tmp_path / str(i)
        assert_equal_weights(source, before)


def test_layers_in_floating_point_are_named(tmp_path: Path) -> None:
    """A linear left out, and the head, in the place where each format keeps them."""
    make_checkpoint(tmp_path / "ours", "sdar", n_layers=1, tied=False)
    plain = open_checkpoint(tmp_path / "ours")
    roles = [role for role in linear_roles(plain) if role != "layers.0.down.weight"]
    pack_folder(tmp_path / "ours", {r: random_weight(plain.shape(r), 4, 32, symmetric=True) for r in roles})
    left = ["model.layers.0.mlp.down_proj", "lm_head"]
    for format, key in (("awq", "modules_to_not_convert"), ("compressed-tensors", "ignore"), ("gptq", "dynamic")):
        convert(tmp_path / "ours", tmp_path / format, format=format)
        found = json.loads((tmp_path / format / "config.json").read_text())["quantization_config"][key]
        if format == "gptq":
            import re

            patterns = [key.removeprefix("-:") for key in found]
            assert [m for m in [*left, "model.layers.0.mlp.up_proj"] if any(re.match(p, m) for p in patterns)] == left
        else:
            assert found == left
        assert_equal_weights(tmp_path / "ours", tmp_path / format)


def test_different_bits_need_compressed_tensors(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "ours", "sdar", n_layers=1)
    plain = open_checkpoint(tmp_path / "ours")
    pack_folder(
        tmp_path / "ours",
        {r: random_weight(plain.shape(r), 8 if "down" in r else 4, 32) for r in linear_roles(plain)},
    )
    for format in ("gptq", "gptq_v2", "awq"):
        refuse(tmp_path / "ours", tmp_path / "x", format)
    convert(tmp_path / "ours", tmp_path / "ct", format="compressed-tensors")
    assert_equal_weights(tmp_path / "ours", tmp_path / "ct")


def refuse(source: Path, out: Path, format: str, code: str = "E-QUANT") -> DlmEdgeError:
    before = {path: path.stat().st_mtime_ns for path in source.iterdir()}
    with pytest.raises(DlmEdgeError) as caught:
        convert(source, out, format=format)
    assert caught.value.code == code and caught.value.hint
    assert not out.exists() and not out.with_name(out.name + ".partial").exists()
    assert before == {path: path.stat().st_mtime_ns for path in source.iterdir()}
    return caught.value


def float_zeros() -> QuantizedTensor:
    weight = random_weight((64, 64), 4, 32)
    return QuantizedTensor(weight.packed, weight.scales, 4, np.full(weight.scales.shape, 7.5, np.float32))


def outliers() -> QuantizedTensor:
    weight = random_weight((64, 64), 4, 32, symmetric=True)
    extra = OutlierColumns(np.array([3, 9]), np.ones((64, 2), np.float32))
    return QuantizedTensor(weight.packed, weight.scales, 4, outliers=extra)


def zero_of_zero() -> QuantizedTensor:
    weight = random_weight((64, 64), 4, 32)
    zeros = weight.zeros.copy()
    zeros[5, 1] = 0
    return QuantizedTensor(weight.packed, weight.scales, 4, zeros)


@pytest.mark.parametrize("format", FOLDERS)
@pytest.mark.parametrize(
    ("weight", "named"), [(float_zeros, "float zeros"), (outliers, "2 outlier columns"), (random_codebook, "nf4")]
)
def test_what_no_format_holds(tmp_path: Path, format: str, weight: Any, named: str) -> None:
    make_checkpoint(tmp_path / "ours", "sdar", n_layers=1, n_kv_heads=4)
    packed = weight((64, 64), "nf4") if weight is random_codebook else weight()
    pack_folder(tmp_path / "ours", {"layers.0.q.weight": packed})
    error = refuse(tmp_path / "ours", tmp_path / "x", format)
    assert named in error.message and "model.layers.0.self_attn.q_proj.weight" in error.message


@pytest.mark.parametrize(
    ("format", "weight"),
    [
        ("gptq", zero_of_zero()),
        ("awq", random_weight((64, 64), 8, 32)),
        ("awq", random_weight((64, 64), 3, 32)),
        ("awq", random_weight((64, 64), 4, 32, reordered=True)),
        ("compressed-tensors", random_weight((64, 64), 4, 32, reordered=True)),
    ],
)
def test_what_one_format_does_not_hold(tmp_path: Path, format: str, weight: QuantizedTensor) -> None:
    make_checkpoint(tmp_path / "ours", "sdar", n_layers=1)
    pack_folder(tmp_path / "ours", {"layers.0.q.weight": weight})
    refuse(tmp_path / "ours", tmp_path / "x", format)


def test_int8_activations_are_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "ours", "sdar", n_layers=1)
    packed: dict[str, PackedWeight] = {"layers.0.q.weight": random_weight((64, 64), 8, 64, symmetric=True)}
    pack_folder(tmp_path / "ours", packed, activations="int8")
    assert "int8 activations" in refuse(tmp_path / "ours", tmp_path / "x", "compressed-tensors").message


@pytest.mark.parametrize("format", ["gptq", "awq", "compressed-tensors"])
def test_a_checkpoint_without_packed_layers(tmp_path: Path, format: str) -> None:
    refuse(make_checkpoint(tmp_path / "ours", "sdar", n_layers=1), tmp_path / "x", format)


def coarse(scale: float) -> QuantizedTensor:
    weight = random_weight((64, 64), 4, 32, symmetric=True)
    return pack(np.zeros((64, 64), np.uint8), np.full_like(weight.scales, scale), 4)


def test_scales_beyond_float16(tmp_path: Path) -> None:
    """Float32 scales are rounded and said so; those that float16 cannot hold are refused."""
    for i, scale in enumerate((0.1, 1e5, 1e-12)):
        make_checkpoint(tmp_path / f"{i}", "sdar", n_layers=1)
        pack_folder(tmp_path / f"{i}", {"layers.0.q.weight": coarse(scale)})
    report = convert(tmp_path / "0", tmp_path / "out", format="gptq")
    assert len(report.notes) == 1 and "rounded to float16" in report.notes[0]
    found, wanted = (open_checkpoint(tmp_path / n).load("layers.0.q.weight") for n in ("out", "0"))
    np.testing.assert_allclose(found, wanted, rtol=2**-11)
    for i in ("1", "2"):
        with pytest.raises(DlmEdgeError, match="float16"):
            convert(tmp_path / i, tmp_path / "x", format="gptq")
        assert not (tmp_path / "x").exists()
        convert(tmp_path / i, tmp_path / f"ct{i}", format="compressed-tensors")
        assert_equal_weights(tmp_path / i, tmp_path / f"ct{i}")


def test_outputs_are_replaced_only_when_asked_and_ours(tmp_path: Path) -> None:
    source = make_packed(tmp_path / "ours", "sdar", symmetric=True)
    convert(source, tmp_path / "out", format="gptq")
    with pytest.raises(DlmEdgeError) as caught:
        convert(source, tmp_path / "out", format="awq")
    assert caught.value.code == "E-EXISTS"
    convert(source, tmp_path / "out", format="awq", restart=True)
    assert open_checkpoint(tmp_path / "out").config["quantization_config"]["quant_method"] == "awq"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DlmEdgeError) as caught:
        convert(source, tmp_path / "mine", format="awq", restart=True)
    assert caught.value.code == "E-EXISTS" and (tmp_path / "mine" / "letter.txt").exists()
    with pytest.raises(DlmEdgeError):
        convert(source, source, format="awq", restart=True)


def test_equal_jobs_write_equal_bytes(tmp_path: Path) -> None:
    source = make_packed(tmp_path / "ours", "sdar", symmetric=True)
    for out in ("a", "b"):
        convert(source, tmp_path / out, format="compressed-tensors")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)


def test_imatrix_is_taken_from_the_checkpoint(tmp_path: Path) -> None:
    source = make_packed(tmp_path / "ours", "sdar", symmetric=True)
    assert "imatrix" in refuse(source, tmp_path / "x.dat", "imatrix").message
    moments = {"blk.0.ffn_down.weight": (np.arange(128, dtype=np.float32), 10.0)}
    write_imatrix(source / "imatrix.dat", moments, chunks=2, dataset="texts")
    report = convert(source, tmp_path / "out" / "x.dat", format="imatrix")
    assert report.layers == 1 and list(read_imatrix(tmp_path / "out" / "x.dat").mean_squares) == list(moments)
    with pytest.raises(DlmEdgeError, match="exists"):
        convert(source, tmp_path / "out" / "x.dat", format="imatrix")
    convert(source, tmp_path / "out" / "x.dat", format="imatrix", restart=True)
    write_imatrix(source / "imatrix.dat", {"blk.0.ffn_down.weight": (np.ones(64, np.float32), 10.0)})
    refuse(source, tmp_path / "y.dat", "imatrix", "E-TENSOR")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_packed(tmp_path / "ours", "sdar", outer=True, symmetric=True)
    command = ["convert", str(source), "-o", str(tmp_path / "out"), "--format", "gptq"]
    assert main([*command, "--json"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["format"] == "gptq" and report["layers"] == 14 and "note" in said.err
    assert main(command) == 2 and "E-EXISTS" in capsys.readouterr().err
    assert main([*command, "--restart"]) == 0 and "written" in capsys.readouterr().out
    from dlm_edge.cli import convert as module

    assert module.FORMATS == FORMATS and dlm_edge.convert is convert


@pytest.mark.parametrize("kill", [False, True])
def test_a_failing_disk_leaves_the_old_output_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: bool
) -> None:
    """Every call that can fail, one after the other, in a conversion that replaces an earlier one."""
    source, out = make_packed(tmp_path / "ours", "sdar", symmetric=True), tmp_path / "out"
    convert(source, out, format="awq")
    at, finished = 1, False
    while not finished:
        monkeypatch.setattr(files, "calls", FaultyCalls(at, kill=kill))
        try:
            convert(source, out, format="gptq", restart=True)
            finished = True
        except (DlmEdgeError, OSError, Killed):
            pass
        monkeypatch.setattr(files, "calls", FileCalls())
        recover(out)
        method = open_checkpoint(out).config["quantization_config"]["quant_method"]
        assert method in ("awq", "gptq")
        assert_equal_weights(source, out)
        if method == "gptq" and not finished:
            convert(source, out, format="awq", restart=True)
        at += 1
    assert at > 30
    assert open_checkpoint(out).config["quantization_config"]["quant_method"] == "gptq"
