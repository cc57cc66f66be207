from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from dlm_edge.checkpoint.formats.imatrix import gguf_name, read_imatrix, write_imatrix
from dlm_edge.errors import DlmEdgeError

NAMES = ("blk.0.ffn_down.weight", "blk.10.attn_q.weight")


def squares(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 50, n).astype(np.float32)


def test_the_bytes_are_those_of_llama_cpp(tmp_path: Path) -> None:
    """As its reader takes them: name, calls, values; then chunks and dataset. Values are mean * calls."""
    write_imatrix(tmp_path / "i.dat", {"b": (np.array([8, 2], np.float32), 4), "a": (np.ones(1, np.float32), 2)},
                  chunks=3, dataset="text")  # fmt: skip
    expected = struct.pack("<i", 2)
    expected += struct.pack("<i1sii", 1, b"a", 3, 1) + struct.pack("<f", 1.5)
    expected += struct.pack("<i1sii", 1, b"b", 3, 2) + struct.pack("<2f", 6.0, 1.5)
    expected += struct.pack("<ii4s", 3, 4, b"text")
    assert (tmp_path / "i.dat").read_bytes() == expected


@pytest.mark.parametrize(("chunks", "n_tokens"), [(1, 1), (7, 3584), (100, 0.25)])
def test_round_trip(tmp_path: Path, chunks: int, n_tokens: float) -> None:
    given = {name: (squares(n), n_tokens) for name, n in zip(NAMES, (1, 4097), strict=True)}
    write_imatrix(tmp_path / "i.dat", given, chunks=chunks, dataset="Übung")
    found = read_imatrix(tmp_path / "i.dat")
    assert (found.chunks, found.dataset, tuple(sorted(found.mean_squares))) == (chunks, "Übung", NAMES)
    for name, (sums, n) in given.items():
        np.testing.assert_allclose(found.mean_squares[name], sums / n, rtol=2e-7)


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("layers.0.q.weight", "blk.0.attn_q.weight"),
        ("layers.1.k.weight", "blk.1.attn_k.weight"),
        ("layers.2.v.weight", "blk.2.attn_v.weight"),
        ("layers.31.o.weight", "blk.31.attn_output.weight"),
        ("layers.0.gate.weight", "blk.0.ffn_gate.weight"),
        ("layers.0.up.weight", "blk.0.ffn_up.weight"),
        ("layers.7.down.weight", "blk.7.ffn_down.weight"),
    ],
)
def test_names(role: str, name: str) -> None:
    assert gguf_name(role) == name


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "i.dat", {"a": (squares(3), 2), "b": (squares(2), 2)}, dataset="d")
    data = (tmp_path / "i.dat").read_bytes()
    for end in range(len(data)):
        (tmp_path / "cut.dat").write_bytes(data[:end])
        with pytest.raises(DlmEdgeError) as caught:
            read_imatrix(tmp_path / "cut.dat")
        assert caught.value.code == "E-TENSOR"


@pytest.mark.parametrize("field", [0, 4, 9, 13])
@pytest.mark.parametrize("value", [-1, 2**31 - 1])
def test_claims_beyond_the_file_are_refused(tmp_path: Path, field: int, value: int) -> None:
    write_imatrix(tmp_path / "i.dat", {"a": (squares(3), 2)})
    data = bytearray((tmp_path / "i.dat").read_bytes())
    if (field, value) == (9, 2**31 - 1):
        return  # any number of calls is possible
    data[field : field + 4] = struct.pack("<i", value)
    (tmp_path / "i.dat").write_bytes(data)
    with pytest.raises(DlmEdgeError, match="imatrix"):
        read_imatrix(tmp_path / "i.dat")


@pytest.mark.parametrize(("sums", "tokens"), [([np.nan], 1.0), ([-1.0], 1.0), ([1.0], 0.0)])
def test_moments_that_cannot_be_are_not_written(tmp_path: Path, sums: list[float], tokens: float) -> None:
    with pytest.raises(DlmEdgeError):
        write_imatrix(tmp_path / "i.dat", {"a": (np.array(sums, np.float32), tokens)})
    assert not list(tmp_path.iterdir())
