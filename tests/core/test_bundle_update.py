"""Changing a bundle: it opens and verifies at every moment, and no update loses another one's."""

import hashlib
import shutil
import subprocess
import sys

import msgspec
import pytest

from dlm_edge import files
from dlm_edge.bundle import MANIFEST_NAME, MANIFEST_SCHEMA, FileEntry, Manifest, open_bundle
from dlm_edge.bundle_update import update_manifest
from dlm_edge.errors import DlmEdgeError, ResourceError
from dlm_edge.files import FileCalls
from tests.core.faulty_files import FaultyCalls
from tests.tiny import make_spec


def entry(name, data):
    return FileEntry(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


@pytest.fixture
def bundle(tmp_path):
    """As far as `open_bundle` looks at one."""
    folder, contents = tmp_path / "bundle", {"model.onnx": b"graph", "tokenizer.json": b"{}"}
    folder.mkdir()
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    manifest = Manifest(
        schema=MANIFEST_SCHEMA, tool_version="0", target="cpu", model=make_spec("sdar"), operator_version=1, opset=21,
        cache_layout="kv-fp32", cache_group=128, profile="fp32", quantization=None, nodes=(), sampler_defaults={}, parity={},
        measured={}, files=tuple(entry(*item) for item in contents.items()),
    )  # fmt: skip
    (folder / MANIFEST_NAME).write_bytes(msgspec.json.encode(manifest))
    return folder


def with_default(name):
    return lambda manifest: msgspec.structs.replace(manifest, sampler_defaults={"sampler": name})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_are_listed_and_verify(bundle):
    written = update_manifest(bundle, with_default("static"), {"filter.safetensors": b"one"})
    opened = open_bundle(bundle, verify_hashes=True).manifest
    assert opened == written and opened.sampler_defaults == {"sampler": "static"}
    assert (
        entry("filter.safetensors", b"one") in opened.files and (bundle / "filter.safetensors").read_bytes() == b"one"
    )
    assert names(bundle) == ["filter.safetensors", "manifest.json", "model.onnx", "tokenizer.json"]


def test_updates_keep_what_the_others_wrote(bundle):
    update_manifest(bundle, lambda manifest: manifest, {"filter.safetensors": b"one"})
    update_manifest(bundle, with_default("eb"))
    update_manifest(bundle, lambda m: msgspec.structs.replace(m, measured={"x": 1}), {"filter.safetensors": b"other"})
    opened = open_bundle(bundle, verify_hashes=True).manifest
    assert opened.sampler_defaults == {"sampler": "eb"} and opened.measured == {"x": 1} and len(opened.files) == 3


class Watching(FileCalls):
    """What a process killed right before or after each call would leave."""

    def __init__(self, folder, check):
        self.folder, self.check, self.seen = folder, check, 0

    def __getattribute__(self, name):
        found = object.__getattribute__(self, name)
        if name not in ("open", "write", "fsync", "replace"):
            return found

        def watched(*args):
            self.look()
            result = found(*args)
            self.look()
            return result

        return watched

    def look(self):
        self.seen += 1
        copy = self.folder.with_name(f"killed-{self.seen}")
        shutil.copytree(self.folder, copy)
        self.check(copy)
        shutil.rmtree(copy)


def test_killed_at_any_moment_the_bundle_verifies(bundle, monkeypatch):
    update_manifest(bundle, with_default("eb"), {"filter.safetensors": b"one"})
    filters = []

    def check(copy):
        listed = {e.name for e in open_bundle(copy, verify_hashes=True).manifest.files}
        filters.append((copy / "filter.safetensors").read_bytes() if "filter.safetensors" in listed else None)
        with monkeypatch.context() as patch:  # and the next update repairs it
            patch.setattr(files, "calls", FileCalls())
            update_manifest(copy, with_default("static"), {"filter.safetensors": b"two"})
        assert names(copy) == names(bundle) or len(names(copy)) == 4

    monkeypatch.setattr(files, "calls", Watching(bundle, check))
    update_manifest(bundle, with_default("static"), {"filter.safetensors": b"two"})
    assert {b"one", b"two", None} == set(filters) and len(filters) > 20


def test_every_failing_call_leaves_a_bundle_that_verifies(bundle, monkeypatch):
    for k in range(1, 60):
        update_manifest(bundle, with_default("eb"), {"filter.safetensors": b"one"})
        monkeypatch.setattr(files, "calls", FaultyCalls(k))
        try:
            update_manifest(bundle, with_default("static"), {"filter.safetensors": b"two"})
        except ResourceError as problem:
            assert problem.code == "E-IO"
        else:
            break
        finally:
            monkeypatch.setattr(files, "calls", FileCalls())
            open_bundle(bundle, verify_hashes=True)
    assert k > 15


def test_a_second_writer_is_refused(bundle):
    code = (
        "import sys; from pathlib import Path; from dlm_edge.bundle_update import update_manifest\n"
        "from dlm_edge.errors import JobError\n"
        "try: update_manifest(Path(sys.argv[1]), lambda manifest: manifest)\n"
        "except JobError as error: print(error.code)"
    )
    said = []

    def change(manifest):
        done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, timeout=60)
        said.append(done.stdout.strip())
        return manifest

    update_manifest(bundle, change)
    assert said == ["E-BUSY"]


def test_a_broken_bundle_is_not_touched(bundle):
    (bundle / "model.onnx").write_bytes(b"longer than before")
    before = (bundle / MANIFEST_NAME).read_bytes()
    with pytest.raises(DlmEdgeError) as error:
        update_manifest(bundle, with_default("static"), {"filter.safetensors": b"one"})
    assert error.value.code == "E-MANIFEST" and names(bundle) == ["manifest.json", "model.onnx", "tokenizer.json"]
    assert (bundle / MANIFEST_NAME).read_bytes() == before


def test_a_manifest_that_nobody_could_open_is_not_written(bundle):
    with pytest.raises(DlmEdgeError) as error:
        update_manifest(bundle, lambda m: msgspec.structs.replace(m, measured={"x": "y" * (5 << 20)}), {"a": b""})
    assert error.value.code == "E-MANIFEST" and "a" not in names(bundle)
