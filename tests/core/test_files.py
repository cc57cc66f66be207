import errno
import json
from pathlib import Path

import pytest

from dlm_edge import files
from dlm_edge.errors import ResourceError
from tests.core.faulty_files import FaultyCalls


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"x": 1})
    files.write_json(path, {"x": 2})
    assert json.loads(path.read_text()) == {"x": 2}
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_every_failing_call_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    path = tmp_path / "a"
    files.write_file(path, "old")
    for k in range(1, 50):
        calls = FaultyCalls(k, error=error)
        monkeypatch.setattr(files, "calls", calls)
        try:
            files.write_file(path, "new")
        except ResourceError as problem:
            assert problem.code == "E-IO" and str(path) in problem.message
            # Only the very last call, the sync of the folder, comes after the rename.
            assert path.read_text() == ("new" if k == 5 else "old")
            assert names(tmp_path) == ["a"]
            path.write_text("old")
        else:
            break
    assert k == 6  # open, write, sync, rename, sync of the folder; then a run without a fault
    assert path.read_text() == "new"


def test_an_exception_inside_the_block_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_no_nan_in_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a", {"x": float("nan")})
    assert names(tmp_path) == []


def test_leftovers_of_a_killed_run_are_removed_and_other_files_kept(tmp_path):
    (tmp_path / (files.TEMPORARY + "0011")).write_text("half")
    (tmp_path / "mine").write_text("whole")
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["mine"]


def test_the_hash_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256_of(tmp_path / "a").startswith("ba7816bf8f01cfea")
