"""Kinds of outliers in inputs that were made to have them."""

import json
from xml.etree import ElementTree

import pytest
import torch

from dlm_edge.bundle import MANIFEST_NAME
from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.cli.program import main
from dlm_edge.errors import UsageProblem
from dlm_edge.inspection import inspect_outliers
from dlm_edge.models import load_model
from dlm_edge.models.transformer import dense_attention
from dlm_edge.quant.invariance import probe_ids
from dlm_edge.quant.outlier_injection import Injection, inject_outliers
from dlm_edge.quant.outlier_map import outlier_map
from dlm_edge.quant.outliers import LISTED, profile_input, profile_outliers
from dlm_edge.quant.states import Batch
from tests.tiny import FAMILY_NAMES, make_checkpoint

# Scale 100 in every layer, float32: at most 8.9e-7 of the largest logit over families and mask ratios.
CHANGE = 5e-6


def profile(x: torch.Tensor, weights: torch.Tensor | None = None):
    weights = torch.ones(x.shape[:2]) if weights is None else weights
    ids = torch.zeros(x.shape[:2], dtype=torch.int64)
    batch = Batch(ids, ids, torch.arange(x.shape[1]), weights, dense_attention(None))
    return profile_input(0, ("down",), [batch], [x])


def normal_inputs(channels: int = 64) -> torch.Tensor:
    return torch.randn(4, 256, channels, generator=torch.Generator().manual_seed(0))


def test_plain_inputs_have_no_outliers():
    found = profile(normal_inputs())
    assert (found.normal_count, found.massive_count, found.super_outlier) == (0, 0, None)
    assert found.typical == pytest.approx(1.0, abs=0.05) and found.peak_ratio < 2
    assert found.tokens == 1024 and found.channels == 64


def test_kinds_are_told_apart():
    x = normal_inputs()
    x[..., 3] *= 8  # everywhere, moderate
    x[..., 9] *= 8
    x[0, :60, 20] *= 90  # few channels, 6 % of the tokens, extreme
    x[1, :60, 21] *= 70
    found = profile(x)
    assert [c.channel for c in found.normal] and {c.channel for c in found.normal} == {3, 9}
    assert {c.channel for c in found.massive} == {20, 21} and found.massive_count == 2
    assert found.massive[0].share == pytest.approx(0.055, abs=0.01)
    assert found.super_outlier is None


def test_one_channel_far_beyond_all_on_most_tokens_is_super():
    x = normal_inputs()
    x[..., 38] = 40 + x[..., 38]
    found = profile(x)
    assert found.super_outlier is not None and found.super_outlier.channel == 38
    assert found.super_outlier.share == 1.0 and found.normal_count == found.massive_count == 0


def test_tokens_without_weight_do_not_count():
    x, weights = normal_inputs(), torch.ones(4, 256)
    weights[2] = 0
    x[2] *= 1000
    assert profile(x, weights) == profile(x[[0, 1, 3]], weights[[0, 1, 3]])


def test_long_lists_are_cut_and_counted():
    x = normal_inputs()
    x[:, 0, :30] = torch.arange(100.0, 130.0)
    found = profile(x)
    assert found.massive_count == 30 and len(found.massive) == LISTED
    assert found.massive[0].channel == 29


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_injection_keeps_the_function_and_shows_in_the_profile(family, tmp_path):
    source = make_checkpoint(tmp_path / "source", family, n_layers=2)
    injected = inject_outliers(source, tmp_path / "out", scale=100.0, channels=3)
    model, other = load_model(source), load_model(injected)
    with torch.inference_mode():
        expected, got = (each(probe_ids(model.spec)) for each in (model, other))
    assert (got - expected).abs().max() < CHANGE * expected.abs().max()
    assert open_checkpoint(injected).spec == open_checkpoint(source).spec
    before, after = (profile_outliers(open_checkpoint(p), n_tokens=512) for p in (source, injected))
    for plain, found in zip(before, after, strict=True):
        if found.linears == ["o"]:
            assert found.peak_ratio == pytest.approx(plain.peak_ratio, rel=0.01)
            continue
        place = [["q", "k", "v"], ["gate", "up"], ["down"]].index(found.linears)
        planted = torch.nonzero(Injection().scales(found.layer, place, found.channels) != 1).flatten()
        assert {c.channel for c in found.massive} | {found.super_outlier and found.super_outlier.channel} >= set(
            planted.tolist()
        )
        assert found.peak_ratio > 10 * plain.peak_ratio


def test_inspect_prints_a_table_and_json(tmp_path, capsys):
    folder = str(make_checkpoint(tmp_path, "llada", n_layers=1))
    assert main(["inspect", folder, "--outliers", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)["outliers"]
    assert [p["linears"] for p in found] == [["q", "k", "v"], ["o"], ["gate", "up"], ["down"]]
    assert "layer     1 of 1" in err
    assert main(["inspect", folder, "--outliers"]) == 0
    out, _ = capsys.readouterr()
    assert "gate up" in out and "peak" in out


def test_inspect_draws_the_map(tmp_path, capsys):
    folder, plot = str(make_checkpoint(tmp_path, "sdar", n_layers=2)), tmp_path / "outliers.svg"
    assert main(["inspect", folder, "--outliers", "--json", "--plot", str(plot)]) == 0
    profiles = json.loads(capsys.readouterr().out)["outliers"]
    titles = [e.text for e in ElementTree.parse(plot).getroot().iter() if e.tag.endswith("title")]
    assert len(titles) == len(profiles) == 8
    for profile, title in zip(profiles, titles, strict=True):
        assert title.startswith(f"layer {profile['layer']} {' '.join(profile['linears'])}: ")
        assert profile["treatments"] and title.endswith("; ".join(profile["treatments"]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--plot", "outliers.svg"], "--plot is for --outliers"),
        (["--outliers", "--plot", "missing/outliers.svg"], "the folder missing for the plot does not exist"),
        (["--outliers", "--plot", "."], ". is a folder"),
    ],
)
def test_a_plot_without_a_place_is_refused_before_the_work(options, said, tmp_path, monkeypatch, capsys):
    folder = str(make_checkpoint(tmp_path / "model", "llada", n_layers=1))
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", folder, *options]) == 2
    err = capsys.readouterr().err
    assert "E-USAGE" in err and said in err and "states" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_bundle_is_refused_for_it_holds_no_layers_to_run(tmp_path):
    (tmp_path / MANIFEST_NAME).write_text("{}")
    with pytest.raises(UsageProblem) as caught:
        inspect_outliers(tmp_path)
    assert caught.value.code == "E-USAGE"


def test_the_map_is_a_picture_with_a_cell_for_each_input():
    profiles = [profile(normal_inputs())]
    root = ElementTree.fromstring(outlier_map(profiles))
    titles = [e.text for e in root.iter() if e.tag.endswith("title")]
    assert len(titles) == 1 and titles[0] is not None and "layer 0 down" in titles[0]
    assert "http" not in outlier_map(profiles).replace("http://www.w3.org/2000/svg", "")
