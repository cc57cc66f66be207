"""What a bundle consists of: bytes that do not depend on the run, a manifest that tells the truth, nothing half done."""

from __future__ import annotations

import json
import shutil

import onnx
import pytest

from dlm_edge import files
from dlm_edge.bundle import open_bundle
from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.errors import InputFileError, ResourceError, UsageProblem
from dlm_edge.export import export
from dlm_edge.export.external_data import ALIGNMENT
from dlm_edge.inspection import inspect_artefact
from dlm_edge.runtime.layouts import LAYOUTS, default_group
from tests.packed_folder import linear_roles, pack_folder, pack_linears, random_codebook, random_tensor
from tests.tiny import make_checkpoint

ALLOWED = {  # everything a step graph may contain; none of it runs code from the folder
    *(
        "Add",
        "Cast",
        "Concat",
        "Cos",
        "Expand",
        "Gather",
        "Gemm",
        "MatMul",
        "Mul",
        "RMSNormalization",
        "Range",
        "Reshape",
        "RotaryEmbedding",
    ),
    *("Shape", "Sigmoid", "Sin", "Slice", "Split", "Squeeze", "Sub", "TensorScatter", "Transpose", "Unsqueeze"),
    *("BitShift", "BitwiseAnd"),  # rows of an embedding in tiles
    *("Abs", "Div", "MatMulInteger", "Max", "ReduceMax", "Round"),
    *("com.microsoft::MatMulNBits", "com.microsoft::GatherBlockQuantized", "com.microsoft::MatMulBnb4"),
    *("dlm_edge::PrefixBlockAttention", "dlm_edge::QLinear", "dlm_edge::SelectPages"),
}
# What rows of a compressed cache are found and given back with.
OF_CACHES = {
    *("And", "Concat", "Div", "Expand", "GreaterOrEqual", "Identity", "Less", "NonZero", "Or", "Sub", "Slice"),
    "dlm_edge::DequantizeRows",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    source = make_checkpoint(folder / "source", "sdar", tied=True)
    export(source, folder / "bundle")
    return folder


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_same_checkpoint_same_bytes(made, tmp_path):
    export(made / "source", tmp_path / "again")
    assert content(tmp_path / "again") == content(made / "bundle")


def test_data_is_aligned_stored_once_and_has_no_orphans(made):
    model = onnx.load(made / "bundle" / "model.onnx", load_external_data=False)
    ranges = set()
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {e.key: e.value for e in tensor.external_data}
            assert int(entry["offset"]) % ALIGNMENT == 0
            ranges.add((int(entry["offset"]), int(entry["length"])))
    end = 0
    for offset, length in sorted(ranges):
        assert end <= offset < end + ALIGNMENT  # padding up to the next page, nothing else in between
        end = offset + length
    assert end == (made / "bundle" / "model.onnx.data").stat().st_size


def operators(bundle):
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    return {f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in model.graph.node}


def test_only_known_operators(made, tmp_path):
    assert operators(made / "bundle") <= ALLOWED
    source = make_checkpoint(tmp_path / "source", "sdar")
    forms = {
        "layers.0.up.weight": random_codebook((128, 64), "nf4"),
        "layers.0.q.weight": random_tensor((64, 64), 4, 32, "float", outliers=2, reordered=True),
        "layers.1.up.weight": random_tensor((128, 64), 8, 64, "integer", outliers=2),
        "embed.weight": random_tensor(open_checkpoint(source).shape("embed.weight"), 8, 64),
    }
    export(pack_folder(source, forms), tmp_path / "packed", profile="w4a8-blocks")
    tied = make_checkpoint(tmp_path / "tied", "sdar", tied=True)
    shapes = linear_roles(tied) | {"embed.weight": open_checkpoint(tied).shape("embed.weight")}
    pack_folder(tied, {role: random_tensor(shape, 4, 32) for role, shape in shapes.items()})
    export(tied, tmp_path / "native", profile="w4a8")
    export(pack_folder_int8(tmp_path / "int8"), tmp_path / "rounded", profile="w8a8")
    packed = operators(tmp_path / "packed") | operators(tmp_path / "rounded") | operators(tmp_path / "native")
    assert packed <= ALLOWED
    assert packed == ALLOWED


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("kv-fp32", "none")])
def test_only_known_operators_over_every_cache(tmp_path, layout):
    export(make_checkpoint(tmp_path / "source", "sdar"), tmp_path / "bundle", cache=layout)
    assert operators(tmp_path / "bundle") <= ALLOWED | OF_CACHES
    manifest = open_bundle(tmp_path / "bundle").manifest
    narrow = layout.replace("x-int", "x-latent-int")  # keys and values of this model are narrower than X
    assert (manifest.cache_layout, manifest.cache_group) == (narrow, default_group(narrow))


def test_only_known_operators_without_a_cache(tmp_path):
    export(make_checkpoint(tmp_path / "source", "dream"), tmp_path / "bundle", cache="none")
    of_caches = {"dlm_edge::PrefixBlockAttention", "dlm_edge::SelectPages", "TensorScatter"}
    assert operators(tmp_path / "bundle") <= (ALLOWED - of_caches) | {"dlm_edge::PatternAttention"}
    assert open_bundle(tmp_path / "bundle").manifest.cache_layout == "none"
    assert inspect_artefact(tmp_path / "bundle").cache_bytes_per_token == 0


def test_group_of_a_cache_is_in_the_manifest(tmp_path):
    export(make_checkpoint(tmp_path / "source", "llada"), tmp_path / "bundle", cache="x-int4,group=32")
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert (manifest.cache_layout, manifest.cache_group) == ("x-int4", 32)
    bytes_per_token = inspect_artefact(tmp_path / "bundle").cache_bytes_per_token
    assert bytes_per_token == 3 * (64 / 2 + 2 * 2 * 64 / 32)  # layers * (codes, and scale and low of each group)


def pack_folder_int8(folder):
    make_checkpoint(folder, "sdar")
    return pack_linears(folder, lambda shape: random_tensor(shape, 8, shape[1], outliers=2), activations="int8")


def test_exporting_again_replaces_and_never_appends(made, tmp_path):
    shutil.copytree(made / "bundle", tmp_path / "bundle")
    with pytest.raises(UsageProblem) as caught:
        export(made / "source", tmp_path / "bundle")
    assert caught.value.code == "E-EXISTS"
    export(made / "source", tmp_path / "bundle", restart=True)
    assert content(tmp_path / "bundle") == content(made / "bundle")


def test_manifest_lists_every_file_with_its_hash(made):
    bundle = open_bundle(made / "bundle", verify_hashes=True)
    listed = {entry.name for entry in bundle.manifest.files}
    assert listed == {p.name for p in (made / "bundle").iterdir()} - {"manifest.json"}
    assert bundle.manifest.parity["max_rel_error"] <= 1e-4


def test_the_chat_template_may_stand_in_the_tokenizer_config(made, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(made / "source", source)
    (source / "chat_template.jinja").unlink()
    path = source / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(config | {"chat_template": "{{ messages[0].content }}"}))
    export(source, tmp_path / "bundle")
    template = open_bundle(tmp_path / "bundle").chat_template_path
    assert template is not None and template.read_text() == "{{ messages[0].content }}"


def test_a_template_that_the_manifest_does_not_name_is_not_used(made, tmp_path):
    source = make_checkpoint(tmp_path / "source", "sdar")
    (source / "chat_template.jinja").unlink()
    export(source, tmp_path / "bundle")
    (tmp_path / "bundle" / "chat_template.jinja").write_text("planted")
    assert open_bundle(tmp_path / "bundle").chat_template_path is None


def test_the_checkpoint_itself_is_never_replaced(made):
    with pytest.raises(UsageProblem) as caught:
        export(made / "source", made / "source", restart=True)
    assert caught.value.code == "E-USAGE"


def damage_json(key, value):
    def change(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest[key] = value
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return change


DAMAGE = {
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "not json": lambda f: (f / "manifest.json").write_text("{"),
    "unknown key": damage_json("surprise", 1),
    "unknown cache": damage_json("cache_layout", "kv-int5"),
    "odd group": damage_json("cache_group", 7),
    "newer schema": damage_json("schema", 99),
    "no graph listed": damage_json("files", []),
    "file missing": lambda f: (f / "model.onnx").unlink(),
    "file cut": lambda f: (f / "model.onnx.data").write_bytes(b"x"),
    "path instead of a name": damage_json("files", [{"name": "../model.onnx", "size": 1, "sha256": ""}]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_bundle_is_refused(damage, made, tmp_path):
    shutil.copytree(made / "bundle", tmp_path / "bundle")
    damage(tmp_path / "bundle")
    with pytest.raises(InputFileError) as caught:
        open_bundle(tmp_path / "bundle")
    assert caught.value.code == "E-MANIFEST"
    assert caught.value.hint


class FailingCalls(files.FileCalls):
    """Every file call from number `k` on fails as on a full disk; `k` None only counts."""

    def __init__(self, k: int | None) -> None:
        self.k, self.count = k, 0

    def __getattribute__(self, name):
        found = object.__getattribute__(self, name)
        if name not in ("open", "write", "fsync", "replace", "mkdir", "unlink", "rmtree"):
            return found

        def call(*args):
            self.count += 1
            if self.k is not None and self.count >= self.k:
                raise OSError(28, "No space left on device")
            return found(*args)

        return call


def test_any_failing_write_keeps_the_old_bundle(made, tmp_path, monkeypatch):
    shutil.copytree(made / "bundle", tmp_path / "bundle")
    old = content(tmp_path / "bundle")
    newer = make_checkpoint(tmp_path / "newer", "sdar", seed=5)
    counter = FailingCalls(None)
    monkeypatch.setattr(files, "calls", counter)
    export(newer, tmp_path / "trial")
    for k in range(1, counter.count + 1, 2):
        monkeypatch.setattr(files, "calls", FailingCalls(k))
        try:
            export(newer, tmp_path / "bundle", restart=True)
        except ResourceError as error:
            assert error.code == "E-IO"
        monkeypatch.setattr(files, "calls", files.FileCalls())
        found = open_or_recover(tmp_path / "bundle")
        assert found in (old, content(tmp_path / "trial")), f"call {k}"
        if found != old:
            shutil.rmtree(tmp_path / "bundle")
            shutil.copytree(made / "bundle", tmp_path / "bundle")


def open_or_recover(folder):
    """Between the two renames the old bundle stands under its rescue name until the next run puts it back."""
    from dlm_edge.work_folder import recover

    recover(folder)
    open_bundle(folder, verify_hashes=True)
    return content(folder)
