import json

import msgspec
import numpy as np
import pytest
import torch
from safetensors import safe_open

import dlm_edge.quant.job as job_module
from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.errors import DlmEdgeError, JobError
from dlm_edge.models import load_model
from dlm_edge.quant import plan_only, quantize, rtn
from dlm_edge.quant import resources as resources_module
from dlm_edge.quant.statistics import InputStatistics
from dlm_edge.quantized import RECORD_NAME, QuantizationRecord, dequantize
from tests.tiny import FAMILY_NAMES, make_checkpoint

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
TEXT = "def sort(names):\n    return sorted(names)  # the shortest first, then by letter\n" * 2


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "calibration.txt"
    path.write_text(TEXT)
    return path


def make(folder, family="sdar", **settings):
    return make_checkpoint(folder / "source", family, n_layers=2, **settings)


def refusal(*args, **settings) -> DlmEdgeError:
    with pytest.raises(DlmEdgeError) as caught:
        quantize(*args, **settings)
    return caught.value


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_every_family_becomes_a_checkpoint_that_opens(tmp_path, text, family, method):
    source = make(tmp_path, family)
    data = text if method == "gptq" else None
    report = quantize(source, tmp_path / "out", method=method, bits=4, group_size=32, calib_data=data)
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "out")
    assert after.spec == before.spec
    for role in before.roles():
        is_linear = role.startswith("layers.") and role.split(".")[2] in LINEARS and role.endswith("weight")
        if is_linear:
            assert after.dtype(role) == "int4"
            assert np.abs(after.load(role) - before.load(role)).mean() < 0.2 * np.abs(before.load(role)).mean()
        elif role in ("embed.weight", "head.weight"):
            assert after.dtype(role) == "int8"
            assert np.abs(after.load(role) - before.load(role)).mean() < 0.02 * np.abs(before.load(role)).mean()
        else:
            assert after.dtype(role) == before.dtype(role)
            assert (after.load(role) == before.load(role)).all()
    outer = [role for role in ("embed.weight", "head.weight") if role in before.roles()]
    linears = [f"layers.{i}.{linear}.weight" for i in range(2) for linear in LINEARS]
    assert [layer.name for layer in report.layers] == [before.tensor_name(role) for role in outer + linears]
    assert report.bits_per_weight == 4.5
    assert report.size_bytes == sum(f.stat().st_size for f in (tmp_path / "out").iterdir())
    assert report.fallbacks == []


def test_the_quantized_model_computes_nearly_what_its_source_computes(tmp_path, text):
    source = make(tmp_path)
    quantize(source, tmp_path / "out", bits=8, group_size=16, calib_data=text)
    ids = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = load_model(source)(ids), load_model(tmp_path / "out")(ids)
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()


def test_gptq_loses_less_than_rounding_in_every_layer(tmp_path, text):
    report = quantize(make(tmp_path), tmp_path / "out", bits=3, group_size=32, calib_data=text)
    assert len(report.layers) == 1 + 14  # the tied embedding first
    for layer in report.layers[1:]:
        assert layer.error is not None and layer.rtn_error is not None
        assert 0 < layer.error < layer.rtn_error < 0.2


def test_rounding_is_that_of_the_method(tmp_path):
    source = make(tmp_path)
    quantize(source, tmp_path / "out", method="rtn", bits=2, group_size=16)
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "out")
    role = "layers.1.down.weight"
    expected = rtn.quantize(role, before.load(role), rtn.RtnConfig(bits=2, group_size=16))
    assert (after.load(role) == dequantize(expected)).all()


def test_later_layers_are_calibrated_on_what_quantized_layers_compute(tmp_path, text):
    """At 2 bits the inputs of the second layer differ from those in full precision; the record shows which were used."""
    source = make(tmp_path)
    quantize(source, tmp_path / "all", bits=2, group_size=16, calib_data=text)
    quantize(source, tmp_path / "last", bits=2, group_size=16, calib_data=text, skip=["model.layers.0.*"])
    both, last = open_checkpoint(tmp_path / "all"), open_checkpoint(tmp_path / "last")
    assert (both.load("layers.1.q.weight") != last.load("layers.1.q.weight")).any()


def test_the_record_says_what_was_done(tmp_path, text):
    source = make(tmp_path)
    quantize(
        source,
        tmp_path / "out",
        method="gptq",
        bits=3,
        group_size=32,
        seed=5,
        calib_data=text,
        skip=["*.0.*.q_proj.weight"],
    )
    record = msgspec.json.decode((tmp_path / "out" / RECORD_NAME).read_bytes(), type=QuantizationRecord)
    assert (record.method, record.bits, record.group_size, record.seed) == ("gptq", 3, 32, 5)
    assert record.source["files"] == open_checkpoint(source).weight_files()
    assert record.skipped == ["model.layers.0.self_attn.q_proj.weight"]
    assert len(record.layers) == 1 + 13 and record.calibration["tokens"] > 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "--bits 3 --group-size 32 --zero symmetric --seed 5" in card and "--skip '*.0.*.q_proj.weight'" in card


def test_the_licence_is_carried_over(tmp_path):
    source = make(tmp_path)
    (source / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- x\n---\n# Model\n")
    (source / "LICENSE").write_text("the words of the licence")
    quantize(source, tmp_path / "out", method="rtn")
    assert "license: apache-2.0" in (tmp_path / "out" / "README.md").read_text().splitlines()
    assert (tmp_path / "out" / "LICENSE").read_text() == "the words of the licence"


def test_the_same_settings_give_the_same_bytes_and_another_seed_does_not(tmp_path, text):
    source = make(tmp_path)
    contents = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        quantize(source, tmp_path / name, group_size=32, calib_data=text, seed=seed)
        contents.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]
    assert contents[0]["layer-0000.safetensors"] != contents[2]["layer-0000.safetensors"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_not_quantized_keeps_its_type(tmp_path, dtype):
    quantize(make(tmp_path, dtype=dtype), tmp_path / "out", method="rtn")
    with safe_open(tmp_path / "out" / "outer.safetensors", "numpy") as stored:
        assert stored.get_tensor("model.norm.weight").dtype == dtype


def test_a_shipped_calibration_mix_is_used_without_data_of_the_users(tmp_path):
    quantize(make(tmp_path), tmp_path / "out", calib_tokens=1024)
    record = open_checkpoint(tmp_path / "out").record
    assert record is not None and record.calibration["data"] == "default"
    assert record.calibration["tokens"] > 1024


def test_layers_that_do_not_fit_and_patterns_that_match_nothing_are_refused(tmp_path):
    source = make(tmp_path, hidden_size=48)
    misfit = refusal(source, tmp_path / "out", method="rtn", group_size=32)
    assert misfit.code == "E-QUANT" and "q_proj.weight: in_features 48" in misfit.message
    assert "--skip" in misfit.hint
    stray = refusal(source, tmp_path / "out", method="rtn", group_size=16, skip=["*.qproj.*"])
    assert stray.code == "E-QUANT" and "'*.qproj.*' matches no layer" in stray.message
    assert refusal(source, tmp_path / "out", method="rtn", group_size=16, skip=["*"]).code == "E-QUANT"
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"method": "awk"}, "E-USAGE"),
        ({"bits": 5}, "E-QUANT"),
        ({"group_size": 48}, "E-QUANT"),
        ({"calibration": "none"}, "E-USAGE"),
        ({"method": "rtn", "calib_data": "x.txt"}, "E-USAGE"),
        ({"resume": True, "restart": True}, "E-USAGE"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, settings, code):
    assert refusal(make(tmp_path), tmp_path / "out", **settings).code == code


def test_a_quantized_checkpoint_is_not_quantized_again(tmp_path):
    quantize(make(tmp_path), tmp_path / "out", method="rtn")
    assert refusal(tmp_path / "out", tmp_path / "again", method="rtn").code == "E-QUANT"


def plant(source, name: str, value: float) -> None:
    """Overwrite the first value of a bfloat16 tensor."""
    path = source / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    at = 8 + length + json.loads(data[8 : 8 + length])[name]["data_offsets"][0]
    data[at : at + 2] = np.float32(value).tobytes()[2:]
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_norm.weight"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_stop_the_job_and_name_the_tensor(tmp_path, text, name, value):
    source = make(tmp_path)
    plant(source, name, value)
    problem = refusal(source, tmp_path / "out", group_size=32, calib_data=text)
    assert problem.code == "E-NAN" and name in problem.message
    assert not (tmp_path / "out").exists()


def test_or_count_as_zero_on_request_and_are_noted(tmp_path, text):
    source = make(tmp_path)
    plant(source, "model.layers.1.mlp.up_proj.weight", np.nan)
    report = quantize(source, tmp_path / "out", group_size=32, calib_data=text, allow_nonfinite=True)
    (noted,) = [layer for layer in report.layers if layer.notes]
    assert noted.name == "model.layers.1.mlp.up_proj.weight"
    assert noted.notes == ["1 NaN or infinite weights set to zero"]
    assert np.isfinite(open_checkpoint(tmp_path / "out").load("layers.1.up.weight")).all()


def test_activations_that_overflow_stop_the_job(tmp_path, text):
    source = make(tmp_path)
    plant(source, "model.layers.0.mlp.down_proj.weight", 3e38)
    plant(source, "model.layers.0.mlp.up_proj.weight", 3e38)
    problem = refusal(source, tmp_path / "out", group_size=32, calib_data=text)
    assert problem.code == "E-NAN" and "down_proj.weight" in problem.message


def test_a_fallback_is_reported_and_refused_under_strict(tmp_path, text, monkeypatch):
    add = InputStatistics.add

    def indefinite(self: InputStatistics, *args) -> None:
        add(self, *args)
        if "layers.1.mlp.down_proj" in self.name:
            self.second_moment[0, 0] = -1e6

    monkeypatch.setattr(InputStatistics, "add", indefinite)
    source = make(tmp_path)
    report = quantize(source, tmp_path / "out", group_size=32, calib_data=text)
    assert report.fallbacks == ["model.layers.1.mlp.down_proj.weight"]
    assert report.layers[-1].method == "rtn" and "rounded to nearest instead" in report.layers[-1].notes
    record = open_checkpoint(tmp_path / "out").record
    assert record is not None and record.fallbacks == report.fallbacks
    problem = refusal(source, tmp_path / "strict", group_size=32, calib_tokens=1024, strict=True)
    assert problem.code == "E-QUANT" and "model.layers.1.mlp.down_proj.weight" in problem.message


def test_a_source_that_changes_during_the_job_is_noticed(tmp_path, monkeypatch):
    source = make(tmp_path)
    write = job_module.write_layer_file

    def write_and_touch(path, tensors):
        write(path, tensors)
        if path.name == "layer-0001.safetensors":
            weights = source / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1] + b"\0")

    monkeypatch.setattr(job_module, "write_layer_file", write_and_touch)
    assert refusal(source, tmp_path / "out", method="rtn").code == "E-CHANGED"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["scale", "missing"])
def test_the_audit_fails_a_job_whose_output_is_not_what_was_planned(tmp_path, monkeypatch, damage):
    packed_tensors = job_module.packed_tensors

    def damaged(name, tensor):
        if name == "model.layers.1.mlp.up_proj.weight":
            tensor.scales[0, 0] = np.nan
        return packed_tensors(name, tensor)

    if damage == "scale":
        monkeypatch.setattr(job_module, "packed_tensors", damaged)
    else:
        monkeypatch.setattr(job_module.Outcome, "records", lambda self: [])
    problem = refusal(make(tmp_path), tmp_path / "out", method="rtn")
    assert problem.code in ("E-NAN", "E-QUANT", "E-TENSOR")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("resource", "code"), [("free_bytes", "E-IO"), ("available_bytes", "E-MEM")])
def test_too_little_disk_or_memory_is_said_before_the_first_layer(tmp_path, monkeypatch, resource, code):
    monkeypatch.setattr(resources_module, resource, lambda *_: 1 << 20)
    problem = refusal(make(tmp_path), tmp_path / "out", method="rtn")
    assert problem.code == code and "1 MiB" in problem.message
    assert not (tmp_path / "out.partial").exists()


def test_a_dry_run_tells_the_size_and_writes_nothing(tmp_path, text):
    source = make(tmp_path)
    planned = plan_only(source, tmp_path / "out", bits=4, group_size=32, calib_data=text)
    assert planned.dry_run and not (tmp_path / "out").exists()
    done = quantize(source, tmp_path / "out", bits=4, group_size=32, calib_data=text)
    assert planned.bits_per_weight == done.bits_per_weight
    assert [layer.name for layer in planned.layers] == [layer.name for layer in done.layers]
    weights = [f.stat().st_size for f in (tmp_path / "out").glob("*.safetensors")]
    assert planned.size_bytes <= sum(weights) < planned.size_bytes + 16384  # headers


def test_progress_names_every_layer_and_its_errors(tmp_path, text):
    lines: list[str] = []
    quantize(make(tmp_path), tmp_path / "out", group_size=32, calib_data=text, progress=lines.append)
    layers = [line for line in lines if "/14  " in line]
    assert len(layers) == 14
    assert all("error" in line and "rtn" in line and "ETA" in line for line in layers)


def test_an_error_in_a_layer_keeps_what_was_finished(tmp_path, monkeypatch):
    def failing(self, i, layer):
        raise JobError("E-QUANT", "planted")

    monkeypatch.setattr(job_module.FinishedLayers, "plain_tensors", failing)
    refusal(make(tmp_path), tmp_path / "out", method="rtn")
    assert (tmp_path / "out.partial" / "outer.safetensors").is_file()
