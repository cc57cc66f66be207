"""Every method and every further setting gives a model that works, and the same bytes when it was stopped and resumed."""

import json
from pathlib import Path

import msgspec
import pytest
import torch

from dlm_edge import files
from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.checkpoint.formats.imatrix import read_imatrix
from dlm_edge.errors import Stopped
from dlm_edge.journal import JOURNAL
from dlm_edge.models import load_model
from dlm_edge.quant import quantize
from dlm_edge.quant.finished import IMATRIX
from dlm_edge.quant.invariance import LARGEST_CHANGE
from dlm_edge.quant.methods import METHODS
from dlm_edge.quant.pipeline import make_options
from dlm_edge.quantized import RECORD_NAME, QuantizationRecord
from tests.core.faulty_files import FaultyCalls, Killed
from tests.quant.stopped_jobs import hashes, plant_nan, stop_after
from tests.tiny import make_checkpoint

# Largest change of a logit over the largest logit. Measured with 8-bit weights: 0.022 to 0.051 with activations in
# floating point or int8 (sdar), 0.067 at most for any family.
CLOSE = 0.1
GRID = {"bits": 8, "group_size": 16}
LOW = {"bits": 3, "group_size": 16}

EIGHT_BITS = {
    m: {"method": m, **({} if METHODS[m].form else GRID)} for m in METHODS if m not in ("mixed", "nf4", "fp4")
}
FURTHER = {
    "rotated": ("sdar", {"method": "gptq", **GRID, "rotate": True}),  # tied
    "rotated-untied": ("llada", {"method": "gptq", **GRID, "rotate": True}),
    "rotated-without-states": ("sdar", {"method": "rtn", **GRID, "rotate": True}),
    "rotated-int8": ("sdar", {"method": "w8a8", "rotate": True, "imatrix": True}),
    "mixed": ("sdar", {"method": "mixed", "bits": 2.5, "group_size": 32}),
    "mixed-float-zeros": ("sdar", {"method": "mixed", "bits": 6, "group_size": 16, "zero": "float"}),
    "tuned": ("sdar", {"method": "decoupleq", **LOW, "zero": "float", "tune": 2}),
    "tuned-rotated": ("dream", {"method": "decoupleq", **LOW, "rotate": True, "tune": 2}),
    "tuned-folded": ("llada", {"method": "awq+gptq", **LOW, "tune": 2, "imatrix": True}),  # v is folded too
    "tuned-without-states": ("sdar", {"method": "rtn", **LOW, "tune": 2}),
    "imatrix": ("sdar", {"method": "gptq", **LOW, "imatrix": True}),
    "imatrix-of-some-layers": ("sdar", {"method": "gptq", **LOW, "imatrix": True, "skip": ["*layers.0.*"]}),
    "skip-in-a-folded-group": ("sdar", {"method": "awq", **LOW, "skip": ["*.0.*k_proj*"]}),
    "skip-in-a-smoothed-group": ("sdar", {"method": "smoothquant", "skip": ["*.0.*up_proj*"]}),
    "skip-when-rotated": ("sdar", {"method": "gptq", **LOW, "rotate": True, "skip": ["*.0.*k_proj*", "*embed*"]}),
    "rollout": ("fast_dllm_v2", {"method": "gptq", **LOW, "calibration": "rollout"}),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Checkpoints with layers that every method takes: the codebooks want multiples of 64."""
    folder, made = tmp_path_factory.mktemp("sources"), {}

    def source(family: str) -> Path:
        if family not in made:
            made[family] = make_checkpoint(folder / family, family, n_layers=2, hidden_size=64, intermediate_size=64)
        return made[family]

    return source


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "calibration.txt"
    path.write_text("one two three, four five six: seven" * 2)
    return path


def with_data(settings, text):
    return settings | ({"calib_data": text, "calib_tokens": 1024} if make_options(**settings).needs_states else {})


def check_resumes(monkeypatch, source, tmp_path, settings) -> Path:
    """The folder of an uninterrupted run, after one that was stopped has come to the same bytes."""
    report = quantize(source, tmp_path / "whole", **settings)
    assert report.size_bytes == sum(p.stat().st_size for p in (tmp_path / "whole").iterdir())
    with monkeypatch.context() as patch:
        stop_after(patch, layers=1)
        with pytest.raises(Stopped, match="1 of 2 layers finished"):
            quantize(source, tmp_path / "resumed", **settings)
    quantize(source, tmp_path / "resumed", resume=True, **settings)
    assert hashes(tmp_path / "resumed") == hashes(tmp_path / "whole")
    return tmp_path / "whole"


def change(source, folder) -> float:
    """Of a logit, over the largest one."""
    ids = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = load_model(source)(ids), load_model(folder)(ids)
    assert torch.isfinite(got).all()
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("method", EIGHT_BITS)
def test_a_method_at_8_bits(sources, text, tmp_path, monkeypatch, method):
    source = sources("sdar")
    folder = check_resumes(monkeypatch, source, tmp_path, with_data(EIGHT_BITS[method], text))
    assert 0 < change(source, folder) < CLOSE
    assert record_of(folder).method == method


@pytest.mark.parametrize("method", ["nf4", "fp4"])
def test_a_codebook(sources, tmp_path, monkeypatch, method):
    pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes", exc_type=ImportError)
    source = sources("sdar")
    folder = check_resumes(monkeypatch, source, tmp_path, {"method": method})
    assert 0 < change(source, folder) < 1
    assert {layer.format for layer in record_of(folder).layers[1:]} == {method}


@pytest.mark.parametrize("case", FURTHER)
def test_a_further_setting(sources, text, tmp_path, monkeypatch, case):
    family, settings = FURTHER[case]
    source = sources(family)
    folder = check_resumes(monkeypatch, source, tmp_path, with_data(settings, text))
    eight_bits = not settings.get("skip") and (settings.get("bits") == 8 or settings["method"] == "w8a8")
    assert 0 < change(source, folder) < (CLOSE if eight_bits else 2)
    assert open_checkpoint(folder).spec.tied_head == (family == "sdar" and not settings.get("rotate"))
    assert (folder / IMATRIX).is_file() == settings.get("imatrix", False)
    record = record_of(folder)
    bits = [layer.bits for layer in record.layers if "embed" not in layer.name and "head" not in layer.name]
    if settings["method"] == "mixed":
        assert len(set(bits)) > 1 and sum(bits) / len(bits) <= settings["bits"] + 1
    assert bool(record.rotation) == settings.get("rotate", False)
    if record.rotation:
        assert 0 < record.rotation["largest_change"] <= LARGEST_CHANGE and record.rotation["tokens"] == 320
    treated = [layer.treatment for layer in record.layers if layer.name not in outer_names(folder)]
    assert all(treated) and all(t[0].startswith("rotate (residual") == bool(record.rotation) for t in treated)
    if settings["method"] == "mixed":
        assert any(t[0].startswith("more bits (") for t in treated)
    if settings.get("skip"):
        assert record.skipped and not set(record.skipped) & {layer.name for layer in record.layers}


def outer_names(folder: Path) -> set[str]:
    found = open_checkpoint(folder)
    return {found.tensor_name(role) for role in ("embed.weight", "head.weight") if role in found.roles()}


def record_of(folder: Path) -> QuantizationRecord:
    return msgspec.json.decode((folder / RECORD_NAME).read_bytes(), type=QuantizationRecord)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "gptq", **GRID},
        {"method": "decoupleq", **LOW, "rotate": True, "tune": 2},
        {"method": "w8a8", "imatrix": True},
        {"method": "awq", **LOW, "skip": ["*layers.0.*", "*embed*"]},
        {"method": "rtn", **LOW, "skip": ["*layers.0.*up_proj*"]},
    ],
    ids=lambda s: s["method"],
)
def test_zeroed_values_are_told_wherever_they_are(text, tmp_path, monkeypatch, settings):
    """Also those of tensors without a record: norms, and weights that are skipped, alone or with their whole layer."""
    source = make_checkpoint(tmp_path / "source", "sdar", n_layers=2, hidden_size=64, intermediate_size=64)
    where = ["mlp.up_proj", "input_layernorm"]
    planted = [f"model.layers.0.{name}.weight" for name in where] + ["model.embed_tokens.weight", "model.norm.weight"]
    plant_nan(source, *planted)
    settings = with_data(settings | {"allow_nonfinite": True}, text)
    folder = check_resumes(monkeypatch, source, tmp_path, settings)
    assert torch.isfinite(load_model(folder)(torch.arange(32)[None])).all()
    told = [
        f"{layer.name}: {note}"
        for layer in record_of(folder).layers
        for note in layer.notes
        if "NaN" in note and "always" not in note
    ]
    for name in planted:
        assert any(name in note for note in told), (name, told)


def test_a_job_killed_after_its_imatrix_keeps_its_layers(sources, text, tmp_path, monkeypatch):
    """The moments of single layers go once all are in one file; the audit that follows takes long on a large model."""
    settings = with_data({"method": "gptq", **LOW, "imatrix": True}, text)
    out = tmp_path / "out"
    quantize(sources("sdar"), tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(files, "calls", KilledBeforeUnlink("moments-0001.safetensors"))
        with pytest.raises(Killed):
            quantize(sources("sdar"), out, **settings)
    journal = out.with_name("out.partial") / JOURNAL
    before = journal.read_bytes()
    assert not journal.with_name("moments-0000.safetensors").exists()
    kept = []
    monkeypatch.setattr(files, "calls", KilledBeforeUnlink(JOURNAL, kept))
    with pytest.raises(Killed):
        quantize(sources("sdar"), out, resume=True, **settings)
    assert kept == [before]  # nothing was done again
    monkeypatch.undo()
    assert json.loads(before.splitlines()[-1])["key"] == IMATRIX
    (out / JOURNAL).unlink()
    assert hashes(out) == hashes(tmp_path / "whole")
    assert len(read_imatrix(out / IMATRIX).mean_squares) == 14


class KilledBeforeUnlink(FaultyCalls):
    def __init__(self, name: str, kept: list[bytes] | None = None) -> None:
        super().__init__()
        self.name, self.kept = name, kept

    def unlink(self, path: Path) -> None:
        if path.name == self.name:
            if self.kept is not None:
                self.kept.append(path.read_bytes())
            raise Killed
        super().unlink(path)
