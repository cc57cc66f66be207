"""The key file: random, private, written once, and read strictly."""

from __future__ import annotations

import os
import threading

import pytest

from dlm_edge.errors import InputFileError
from dlm_edge.server import keys


def test_a_new_key_is_random_private_and_kept(tmp_path):
    path, other = tmp_path / "a" / "server-key", tmp_path / "b" / "server-key"
    assert keys.make_key_file(path) and keys.make_key_file(other)
    (key,) = keys.read_keys(path)
    assert len(key) >= 40 and key != keys.read_keys(other)[0]
    assert not keys.make_key_file(path) and keys.read_keys(path) == [key]
    assert os.listdir(path.parent) == ["server-key"] and keys.is_private(path)
    if os.name != "nt":
        assert path.stat().st_mode & 0o777 == 0o600
        path.chmod(0o640)
        assert not keys.is_private(path)


def test_of_several_first_starts_one_writes(tmp_path):
    path, written = tmp_path / "server-key", []
    threads = [threading.Thread(target=lambda: written.append(keys.make_key_file(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(written) == 1 and os.listdir(tmp_path) == ["server-key"] and len(keys.read_keys(path)) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds 0 keys"),
        ("# only a comment\n", "holds 0 keys"),
        ("short\n", "shorter than 16"),
        ("two words in one key\n", "holds a space"),
        ("key-with-ümlaut-0123456789\n", "other characters than ASCII"),
        ("a-good-key-0123456789\n" * 1001, "holds 1001 keys"),
    ],
)
def test_bad_key_files_are_refused(tmp_path, text, reason):
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputFileError, match=reason) as error:
        keys.Keys.read(path)
    assert error.value.code == "E-FILE" and "a-good-key" not in str(error.value)


def test_a_missing_key_file_is_named(tmp_path):
    with pytest.raises(InputFileError, match="nowhere"):
        keys.Keys.read(tmp_path / "nowhere")


def test_the_objects_hold_no_key(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# mine\na-good-key-0123456789\nanother-key-0123456789  # hers\n")
    found = keys.Keys.read(path)
    assert "key" not in repr(found).removeprefix("Keys") and "digest" in repr(found)
    assert [found.find([b"Bearer " + key]) for key in (b"a-good-key-0123456789", b"another-key-0123456789", b"")] == [
        0,
        1,
        None,
    ]
