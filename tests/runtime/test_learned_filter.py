"""The file of a filter: what was written is read, and nothing else is taken for one."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save

from dlm_edge.bundle import FILTER_NAME
from dlm_edge.bundle_update import update_manifest
from dlm_edge.checking import check
from dlm_edge.errors import DlmEdgeError, InputFileError
from dlm_edge.runtime import Engine
from dlm_edge.runtime.filter_file import FORMAT, MAX_FILE_BYTES, filter_bytes, read_filter
from dlm_edge.runtime.learned_filter import Filter


def make_filter(length=8, n_hidden=5, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((length, n_hidden), (n_hidden,), (n_hidden, length), (length,))
    return Filter(*(rng.standard_normal(shape).astype(np.float32) for shape in shapes))


def test_what_was_written_is_read(tmp_path):
    made, path = make_filter(), tmp_path / FILTER_NAME
    path.write_bytes(filter_bytes(made))
    found = read_filter(path, 8)
    assert all((found.arrays[name] == array).all() for name, array in made.arrays.items())
    assert filter_bytes(found) == filter_bytes(made) and found.block_length == 8


def test_answers_are_probabilities_of_two_layers():
    made, seen = make_filter(), np.random.default_rng(1).random((4, 8))
    for row, answers in zip(seen, made.probabilities(seen), strict=True):
        hidden = [
            max(sum(row[i] * made.hidden_weight[i, j] for i in range(8)) + made.hidden_bias[j], 0) for j in range(5)
        ]
        logits = [sum(hidden[j] * made.slot_weight[j, i] for j in range(5)) + made.slot_bias[i] for i in range(8)]
        np.testing.assert_allclose(answers, 1 / (1 + np.exp(-np.array(logits))), rtol=1e-12)


def test_huge_weights_give_probabilities_too():
    arrays = {name: np.full_like(array, 3e38) for name, array in make_filter().arrays.items()}
    arrays["slot_bias"][:4] = -3e38
    answers = Filter(**arrays).probabilities(np.zeros(8))
    assert ((answers >= 0) & (answers <= 1)).all()


def tensors(**changes):
    return {**make_filter().arrays, **changes}


MADE = {"format": FORMAT}
HOSTILE = {
    "empty": b"",
    "not one": b"<!doctype html>" * 9,
    "cut off": filter_bytes(make_filter())[:-3],
    "longer": filter_bytes(make_filter()) + b"x",
    "header beyond the file": (1 << 60).to_bytes(8, "little") + b"{}",
    "no format": save(tensors()),
    "another format": save(tensors(), {"format": "dlm-edge filter 2"}),
    "one missing": save({k: v for k, v in tensors().items() if k != "slot_bias"}, MADE),
    "one more": save(tensors(more=np.zeros(3, np.float32)), MADE),
    "another type": save(tensors(slot_bias=np.zeros(8, np.float64)), MADE),
    "half": save(tensors(slot_bias=np.zeros(8, np.float16)), MADE),
    "other blocks": filter_bytes(make_filter(16)),
    "a wrong shape": save(tensors(slot_weight=np.zeros((8, 5), np.float32)), MADE),
    "one dimension": save(tensors(hidden_weight=np.zeros(40, np.float32)), MADE),
    "two dimensions": save(tensors(hidden_bias=np.zeros((5, 1), np.float32)), MADE),
    "no hidden ones": save(tensors(hidden_bias=np.zeros(0, np.float32)), MADE),
    "no dimension": save(tensors(hidden_bias=np.zeros((), np.float32)), MADE),
    "nan": save(tensors(slot_bias=np.full(8, np.nan, np.float32)), MADE),
    "infinity": save(tensors(hidden_weight=np.full((8, 5), -np.inf, np.float32)), MADE),
    "too large": bytes(MAX_FILE_BYTES + 1),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_everything_else_is_refused(tmp_path, what):
    path = tmp_path / FILTER_NAME
    path.write_bytes(HOSTILE[what])
    with pytest.raises(InputFileError) as error:
        read_filter(path, 8)
    assert error.value.code == "E-MANIFEST" and str(path) in error.value.message
    assert "train-filter" in error.value.hint


def test_every_cut_and_every_changed_byte_is_refused_or_read(tmp_path):
    path, data = tmp_path / FILTER_NAME, filter_bytes(make_filter())
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(data), 150).tolist():
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        for written in (bytes(changed), data[:at]):
            path.write_bytes(written)
            try:
                found = read_filter(path, 8)
            except InputFileError as error:
                assert error.code == "E-MANIFEST"
            else:
                assert np.isfinite(found.probabilities(np.ones(8))).all()


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputFileError) as error:
            read_filter(path, 8)
        assert error.value.code == "E-MANIFEST"


@pytest.fixture
def bundle(bundles, tmp_path):
    return shutil.copytree(bundles["llada"][1], tmp_path / "bundle")


def test_a_bundle_with_a_filter_opens_and_verifies(bundle):
    update_manifest(bundle, lambda manifest: manifest, {FILTER_NAME: filter_bytes(make_filter())})
    assert check(bundle).ok
    with Engine.open(bundle, threads=1) as engine:
        assert engine.generate("text", sampler="learn2pd", max_new_tokens=9, stop_at_eos=False).new_tokens == 9
    (bundle / FILTER_NAME).write_bytes(filter_bytes(make_filter(seed=1)))
    assert not check(bundle).ok


def test_a_bundle_with_a_bad_filter_is_refused_when_it_is_opened(bundle):
    update_manifest(bundle, lambda manifest: manifest, {FILTER_NAME: HOSTILE["other blocks"]})
    with pytest.raises(DlmEdgeError) as error:
        Engine.open(bundle)
    assert error.value.code == "E-MANIFEST" and "blocks of 8" in error.value.message


def test_a_filter_that_the_manifest_does_not_list_is_not_read(bundle):
    (bundle / FILTER_NAME).write_bytes(HOSTILE["nan"])
    assert FILTER_NAME not in json.loads((bundle / "manifest.json").read_text())["files"]
    with Engine.open(bundle, threads=1) as engine:
        assert engine.parts.filter is None
