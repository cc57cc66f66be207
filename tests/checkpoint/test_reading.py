"""What an accepted checkpoint gives back: numbers, shapes, packed weights, and changes while it is open."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dlm_edge.checkpoint import floats, open_checkpoint
from dlm_edge.checkpoint.regular_file import RegularFile
from dlm_edge.errors import InputFileError
from tests.tiny import FAMILY_NAMES, VOCAB_SIZE, make_checkpoint, make_spec, make_weights

WEIGHTS = "model.safetensors"


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_weight_comes_back(tmp_path: Path, family: str, dtype: str) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, family, dtype=dtype, seed=3))
    weights = make_weights(make_spec(family), 3)
    assert checkpoint.roles() == list(weights)
    for role, weight in weights.items():
        stored = weight.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype).astype(np.float32)
        np.testing.assert_array_equal(checkpoint.load(role), stored)
        assert checkpoint.shape(role) == weight.shape


def test_bfloat16_is_widened_bit_by_bit() -> None:
    bits = np.arange(2**16, dtype="<u2")
    ours = floats.to_float32(bits.view(np.uint8), "BF16")
    np.testing.assert_array_equal(
        ours.view(np.uint32), bits.view(ml_dtypes.bfloat16).astype(np.float32).view(np.uint32)
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_tied_and_sharded(tmp_path: Path, family: str, shards: int, tied: bool) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, family, shards=shards, tied=tied))
    assert ("head.weight" in checkpoint.roles()) is not tied
    assert len(checkpoint.weight_files()) == shards


def test_padded_rows_are_not_produced(tmp_path: Path) -> None:
    spec = open_checkpoint(make_checkpoint(tmp_path, "llada", padded_rows=13)).spec
    assert (spec.vocab_size, spec.embedding_rows) == (VOCAB_SIZE, VOCAB_SIZE + 13)


def test_rows_are_parts_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floats, "CHUNK_BYTES", 300)  # two rows and a bit: chunks do not divide the rows
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, "sdar"))
    whole = checkpoint.load("embed.weight")
    for first, last in [(0, 1), (7, 20), (VOCAB_SIZE - 1, VOCAB_SIZE), (5, 5)]:
        np.testing.assert_array_equal(checkpoint.load_rows("embed.weight", first, last), whole[first:last])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("role", ["embed.weight", "layers.1.k_norm.weight", "layers.2.down.weight"])
def test_non_finite_weights_are_named_and_counted(tmp_path: Path, dtype: str, value: float, role: str) -> None:
    folder = make_checkpoint(tmp_path, "sdar", dtype=dtype)
    checkpoint = open_checkpoint(folder)
    name = checkpoint.tensor_name(role)
    tensors = load_file(folder / WEIGHTS)
    tensors[name] = tensors[name].copy()
    tensors[name].reshape(-1)[[0, 5, -1]] = value
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(InputFileError, match=f"{name} holds 3 values") as refused:
        open_checkpoint(folder).load(role)
    assert refused.value.code == "E-NAN"


def test_a_stored_head_may_repeat_the_tied_embedding_and_nothing_else(tmp_path: Path) -> None:
    tensors = load_file(make_checkpoint(tmp_path, "sdar", tied=True) / WEIGHTS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    save_file(tensors, tmp_path / WEIGHTS)
    assert "head.weight" not in open_checkpoint(tmp_path).roles()
    tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(InputFileError, match="lm_head.weight differs") as refused:
        open_checkpoint(tmp_path)
    assert refused.value.code == "E-TENSOR"


def test_missing_weights_are_named(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "sdar", tied=True, config={"tie_word_embeddings": False})
    with pytest.raises(InputFileError, match="1 weights are missing: lm_head.weight") as refused:
        open_checkpoint(tmp_path)
    assert refused.value.code == "E-TENSOR"


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, "sdar"))
    checkpoint.check_unchanged()
    file = tmp_path / WEIGHTS
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    for use in (checkpoint.check_unchanged, lambda: checkpoint.load("embed.weight")):
        with pytest.raises(InputFileError) as refused:
            use()
        assert refused.value.code == "E-CHANGED"
    file.unlink()
    with pytest.raises(InputFileError) as refused:
        checkpoint.check_unchanged()
    assert refused.value.code == "E-CHANGED"


def test_a_read_beyond_the_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    file = RegularFile.open(tmp_path / "x")
    assert file.read(1, 2) == b"bc"
    with pytest.raises(InputFileError) as refused:
        file.read(1, 3)
    assert refused.value.code == "E-CHANGED"


@pytest.mark.parametrize("shards", [1, 2])
def test_the_hub_cache_layout_opens(tmp_path: Path, shards: int) -> None:
    """snapshots/<revision>/* are links to blobs/<hash>, in a folder that is itself reached over a link."""
    source = make_checkpoint(tmp_path / "source", "sdar", shards=shards)
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in source.iterdir():
        blob = blobs / hashlib.sha256(file.name.encode()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
    (tmp_path / "ünï cödé").symlink_to(snapshot)
    for path in (snapshot, str(snapshot), tmp_path / "ünï cödé"):
        checkpoint = open_checkpoint(path, need_tokenizer=True)
        np.testing.assert_array_equal(checkpoint.load("embed.weight"), open_checkpoint(source).load("embed.weight"))


def test_a_read_only_folder_opens(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "dream")
    before = sorted(folder.iterdir())
    folder.chmod(0o555)
    try:
        open_checkpoint(folder).load("embed.weight")
    finally:
        folder.chmod(0o755)
    assert sorted(folder.iterdir()) == before  # nothing was written into it


def test_code_in_the_folder_is_never_imported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    auto_map = {"AutoConfig": "configuration_sdar.SDARConfig", "AutoModel": "modeling_sdar.SDARForCausalLM"}
    folder = make_checkpoint(tmp_path, "sdar", config={"auto_map": auto_map, "nested": {"trust_remote_code": True}})
    planted = ("configuration_sdar", "modeling_sdar", "tokenization_sdar", "__init__", "sitecustomize", "conftest")
    for module in planted:
        (folder / f"{module}.py").write_text(f"open({str(folder / 'executed')!r}, 'w')")
    imported = set(sys.modules)
    with caplog.at_level(logging.WARNING, logger="dlm_edge"):
        open_checkpoint(folder).load("embed.weight")
    assert not (folder / "executed").exists()
    assert not (set(sys.modules) - imported) & set(planted)
    assert [r.getMessage() for r in caplog.records if "auto_map and trust_remote_code" in r.getMessage()]


def test_weights_that_are_not_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_checkpoint(tmp_path, "sdar")
    (folder / "adapter.safetensors").write_bytes(b"")
    with caplog.at_level(logging.WARNING, logger="dlm_edge"):
        open_checkpoint(folder)
    assert "adapter.safetensors is not part of this checkpoint" in caplog.text


def test_the_tokenizer_is_needed_only_when_asked_for(tmp_path: Path) -> None:
    (make_checkpoint(tmp_path, "sdar") / "tokenizer.json").unlink()
    assert open_checkpoint(tmp_path).spec.vocab_size == VOCAB_SIZE  # then every row may be produced
    with pytest.raises(InputFileError) as refused:
        open_checkpoint(tmp_path, need_tokenizer=True)
    assert refused.value.code == "E-TOK"


def test_weight_files_carry_their_hashes(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, "sdar", shards=2))
    for file in checkpoint.weight_files():
        data = (tmp_path / file["name"]).read_bytes()
        assert (file["size"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("path", ["nowhere", "config.json", "a\0b", "x" * 5000])
def test_a_path_that_is_no_checkpoint_is_refused(tmp_path: Path, path: str) -> None:
    make_checkpoint(tmp_path, "sdar")
    with pytest.raises(InputFileError) as refused:
        open_checkpoint(tmp_path / path)
    assert refused.value.code in ("E-CONFIG", "E-FILE")
