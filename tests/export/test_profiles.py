"""Which profiles a checkpoint can have, and how `auto` chooses."""

from __future__ import annotations

import pytest

from dlm_edge.bundle import open_bundle
from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.errors import UsageProblem
from dlm_edge.export import export, measured_profile
from dlm_edge.export.measured_profile import choose_profile
from dlm_edge.export.profiles import PROFILES, candidates, widths_of
from tests.packed_folder import pack_linears, random_codebook, random_tensor
from tests.tiny import make_checkpoint

FORMS = {
    "none": None,
    "codebook": lambda shape: random_codebook(shape, "nf4"),
    "low": lambda shape: random_tensor(shape, 4 if shape[0] > 64 else 8, 32),  # of two widths
    "eight": lambda shape: random_tensor(shape, 8, shape[1]),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("profiles")
    for name, make in FORMS.items():
        source = make_checkpoint(root / name, "sdar", n_layers=1)
        if make is not None:
            pack_linears(source, make)
    return {name: open_checkpoint(root / name) for name in FORMS}


@pytest.mark.parametrize("name", FORMS)
def test_what_fits(sources, name, tmp_path):
    assert widths_of(sources[name]) == name
    for profile in PROFILES.values():
        out = tmp_path / profile.name
        if name in profile.fits:
            assert export(sources[name].path, out, profile=profile.name).profile == profile.name
            assert open_bundle(out).manifest.profile == profile.name
            assert f"--profile {profile.name}\n" in (out / "README.md").read_text()
            continue
        with pytest.raises(UsageProblem, match=f"profile {profile.name} does not fit") as refused:
            export(sources[name].path, out, profile=profile.name)
        assert refused.value.code == "E-PARAM" and not out.exists()


def test_a_checkpoint_that_is_not_quantized_is_told_how(sources, tmp_path):
    with pytest.raises(UsageProblem) as refused:
        export(sources["none"].path, tmp_path / "bundle", profile="w8a8")
    assert "dlm-edge quantize" in refused.value.hint and "--recipe w8a8" in refused.value.hint


def test_unknown_names_and_other_targets(sources, tmp_path):
    with pytest.raises(UsageProblem, match="'w4a9' is not known") as refused:
        export(sources["low"].path, tmp_path / "bundle", profile="w4a9")
    assert refused.value.code == "E-USAGE" and "w4a8" in refused.value.hint
    with pytest.raises(UsageProblem, match="for the CPU"):
        export(sources["low"].path, tmp_path / "bundle", target="cuda", profile="w4")
    export(sources["low"].path, tmp_path / "bundle", target="cuda")
    assert open_bundle(tmp_path / "bundle").manifest.profile == ""


def test_candidates_stay_packed_and_native():
    class Source:
        def __init__(self, widths):
            self.widths = widths

    found = {}
    for widths in FORMS:
        for library in (True, False):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("dlm_edge.export.profiles.widths_of", lambda source: source.widths)
                found[widths, library] = [profile.name for profile in candidates(Source(widths), library)]
    assert found == {
        ("none", True): ["fp32"], ("none", False): ["fp32"], ("codebook", True): ["w4"], ("codebook", False): ["w4"],
        ("low", True): ["w4", "w4a8", "w4a8-blocks"], ("low", False): ["w4", "w4a8-blocks"],
        ("eight", True): ["w8", "w8a8", "w8a8-qlinear"], ("eight", False): ["w8", "w8a8"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [((1.0, 0.5, 0.9), "w4a8"), ((1.0, 1.02, 1.1), "w4"), ((1.06, 1.0, 1.0), "w4a8"), ((3.0, 2.0, 1.0), "w4a8-blocks")],
)
def test_the_fastest_is_chosen_and_recorded(sources, tmp_path, monkeypatch, seconds, chosen):
    names = ["w4", "w4a8", "w4a8-blocks"]
    monkeypatch.setattr(measured_profile.kernels, "library_path", lambda: tmp_path)
    monkeypatch.setattr(
        measured_profile, "times", lambda source, profiles, rows: dict(zip(names, seconds, strict=True))
    )
    said = []
    choice = choose_profile("auto", sources["low"], said.append)
    assert choice.profile == chosen and choice.kernel == PROFILES[chosen].kernel
    record = choice.measured["profile"]
    assert record["chosen"] == chosen and record["rows"] == 16 and list(record["seconds"]) == names
    assert chosen in said[0] and all(name in said[0] for name in names)


def test_every_candidate_is_really_timed(sources, tmp_path):
    report = export(sources["eight"].path, tmp_path / "bundle")
    record = open_bundle(tmp_path / "bundle").manifest.measured["profile"]
    assert record["chosen"] == report.profile
    assert set(record["seconds"]) == {p.name for p in candidates(sources["eight"], record["simd"] is not None)}
    assert all(value > 0 for value in record["seconds"].values())
