"""Every named bad file is refused with its code, quickly, and without running or reading anything else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.errors import InputFileError
from tests.checkpoint import bad_files as corpus
from tests.checkpoint.bad_files import Mutation
from tests.tiny import make_checkpoint


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("single"), "sdar")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("sharded"), "sdar", shards=2)


def by_name(cases: list[tuple[str, Mutation, str]]) -> list[Any]:
    return [pytest.param(mutate, code, id=name) for name, mutate, code in cases]


@pytest.mark.parametrize(("mutate", "code"), by_name(corpus.SINGLE_FILE))
def test_refused_with_its_code(single: Path, tmp_path: Path, mutate: Mutation, code: str) -> None:
    check_refusal(single, tmp_path, mutate, code)


@pytest.mark.parametrize(("mutate", "code"), by_name(corpus.SHARDS))
def test_shards_refused_with_their_code(sharded: Path, tmp_path: Path, mutate: Mutation, code: str) -> None:
    check_refusal(sharded, tmp_path, mutate, code)


def check_refusal(good: Path, tmp_path: Path, mutate: Mutation, code: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    mutate(folder)
    with pytest.raises(InputFileError) as refused:
        open_checkpoint(folder)
    assert refused.value.code == code
    assert len(str(refused.value)) < 2000  # names of a megabyte are not repeated in full
    str(refused.value).encode("utf-8")  # and every message can be printed
    assert not (folder / "executed").exists()


def test_both_corpora_are_accepted_unchanged(single: Path, sharded: Path) -> None:
    assert open_checkpoint(single).spec == open_checkpoint(sharded).spec


def test_names_are_unique() -> None:
    names = [name for name, _, _ in [*corpus.SINGLE_FILE, *corpus.SHARDS]]
    assert len(set(names)) == len(names) >= 130
