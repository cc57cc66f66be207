"""A sweep on a tiny bundle: what is measured, what is written, and that generation then follows it."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ElementTree

import msgspec
import pytest

import dlm_edge
from dlm_edge.bundle import open_bundle
from dlm_edge.errors import InputFileError, UsageProblem
from dlm_edge.inspection import inspect_artefact
from dlm_edge.runtime import Engine
from dlm_edge.runtime.request import prepare
from dlm_edge.tuning.record import read_record
from dlm_edge.tuning.report import TuneRow
from dlm_edge.tuning.tune import PLOT_NAME, judged, write
from tests.tiny import make_checkpoint

FAST = {"samples": 1, "repeats": 1, "threads": 1}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    from dlm_edge.export import export

    folder = tmp_path_factory.mktemp("tuning")
    export(str(make_checkpoint(folder / "source", "sdar", n_layers=1)), str(folder / "bundle"))
    return folder / "bundle"


@pytest.fixture
def bundle(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "bundle")


@pytest.fixture(scope="module")
def report(exported):
    return dlm_edge.tune(exported, samplers=["localleap", "adablock"], dry_run=True, **FAST)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def chosen_by(bundle, **settings):
    """The sampler that a request uses, and its settings."""
    with Engine.open(bundle, threads=1) as engine:
        request = prepare(engine.parts, engine.encode("abc"), settings)
    return request.sampler.name, msgspec.structs.asdict(request.settings.options)


def test_every_setting_has_a_row(report):
    labels = [row.label for row in report.rows]
    assert labels[:2] == ["static", "localleap relaxed=0.85"] and report.prompts == 6 and report.source == "tasks"
    static = report.rows[0]
    assert static.agreement == static.identical == static.speed_ratio == 1.0 and static.prompts == 6
    for row in report.rows:
        assert row.verdict == "refused" or (row.forward_passes > 0 and row.speed_ratio > 0)
        assert row.verdict not in ("chosen", "holds") or row.agreement >= 0.98
        assert row.verdict != "dropped" or 2 <= row.prompts <= 6
    assert [row.verdict for row in report.rows].count("chosen") == 1
    assert report.best.sampler == report.chosen["sampler"]


def test_what_the_family_cannot_do_is_left_out_with_its_reason(report):
    refused = [row for row in report.rows if row.sampler == "adablock"]
    assert refused and all(row.verdict == "refused" and "blocks" in row.why for row in refused)


@pytest.mark.parametrize(("named", "chosen"), [([], "threshold"), (["credit"], "credit")])
def test_what_refuses_structured_output_is_chosen_only_by_name(named, chosen):
    def row(name, speed):
        return TuneRow(
            sampler=name, options={}, label=name, verdict="holds", agreement=1.0, speed_ratio=speed, steps_per_token=1.0
        )

    found = judged([row("static", 1.0), row("threshold", 2.0), row("credit", 3.0)], 0.98, named)
    assert [each.sampler for each in found if each.verdict == "chosen"] == [chosen]
    assert named or (found[2].verdict == "special" and "structured output" in found[2].why)


def test_a_dry_run_writes_nothing_but_the_plot_that_is_asked_for(bundle, tmp_path):
    before = contents(bundle)
    plot = tmp_path / "plot.svg"
    report = dlm_edge.tune(bundle, samplers=["localleap"], dry_run=True, plot=plot, **FAST)
    assert contents(bundle) == before and not report.written and report.plot == str(plot)
    circles = ElementTree.parse(plot).iter("{http://www.w3.org/2000/svg}circle")
    assert len(list(circles)) == len(report.rows) + 4  # and the legend's


def test_the_choice_is_written_and_the_bundle_stays_whole(bundle):
    report = dlm_edge.tune(bundle, samplers=["localleap"], **FAST)
    opened = open_bundle(bundle, verify_hashes=True)
    assert opened.manifest.sampler_defaults == report.chosen
    assert PLOT_NAME in {entry.name for entry in opened.manifest.files}
    assert set(contents(bundle)) == {entry.name for entry in opened.manifest.files} | {"manifest.json"}
    record = read_record(opened.manifest)
    assert record.setting == report.best.label and record.agreement == report.best.agreement
    assert record.machine == report.machine and record.date.endswith("+00:00")


def written(report, bundle, **chosen):
    write(msgspec.structs.replace(report, chosen=chosen, written=True), bundle, None)


def test_generation_follows_the_choice(report, bundle):
    assert chosen_by(bundle) == ("threshold", {"threshold": 0.9})
    written(report, bundle, sampler="eb", sampler_options={"gamma": 0.3, "rule": "sum"})
    assert chosen_by(bundle) == ("eb", {"gamma": 0.3, "rule": "sum"})
    assert chosen_by(bundle, sampler_options={"gamma": 0.6}) == ("eb", {"gamma": 0.6, "rule": "sum"})
    assert chosen_by(bundle, sampler="threshold") == ("threshold", {"threshold": 0.9})
    assert chosen_by(bundle, threshold=0.5) == ("threshold", {"threshold": 0.5})
    written(report, bundle, sampler="threshold", sampler_options={"threshold": 0.7})
    assert chosen_by(bundle) == ("threshold", {"threshold": 0.7})
    assert chosen_by(bundle, threshold=0.5) == ("threshold", {"threshold": 0.5})
    assert chosen_by(bundle, sampler="static") == ("static", {"steps": None})
    found = inspect_artefact(bundle)
    assert found.sampler_defaults["sampler"] == "threshold" and found.tuned["setting"] == report.best.label


def test_an_earlier_choice_is_not_part_of_what_is_measured(report, bundle):
    written(report, bundle, sampler="threshold", sampler_options={"threshold": 0.01})
    again = dlm_edge.tune(bundle, samplers=["localleap", "adablock"], dry_run=True, **FAST)
    measured = [(row.label, row.agreement, row.forward_passes) for row in report.rows]
    assert [(row.label, row.agreement, row.forward_passes) for row in again.rows] == measured


def test_other_defaults_stay(report, bundle):
    manifest = open_bundle(bundle).manifest
    changed = msgspec.structs.replace(manifest, sampler_defaults={"max_new_tokens": 7, "steps": 3, "sampler": "static"})
    (bundle / "manifest.json").write_bytes(msgspec.json.encode(changed))
    written(report, bundle, sampler="eb", sampler_options={"gamma": 0.3})
    found = open_bundle(bundle).manifest.sampler_defaults
    assert found == {"max_new_tokens": 7, "sampler": "eb", "sampler_options": {"gamma": 0.3}}


def test_an_interrupted_run_leaves_the_bundle_as_it_was(bundle):
    before = contents(bundle)

    def interrupt(line):
        if line.startswith("round"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dlm_edge.tune(bundle, samplers=["localleap"], progress=interrupt, **FAST)
    assert contents(bundle) == before


def test_a_files_prompts_take_the_place_of_the_tasks(bundle, tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "a", "answer": "b"}\n"c"\n"d"\n')
    asked = {"prompts": prompts, "max_new_tokens": 5, "samplers": ["localleap"], "dry_run": True}
    report = dlm_edge.tune(bundle, **asked, **(FAST | {"samples": 2}))
    assert report.prompts == 2 and report.source == "p.jsonl" and report.rows[0].exact_match in (0.0, 1.0)
    assert report.plot is None


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"agreement": 1.5}, "E-PARAM"),
        ({"samplers": ["none"]}, "E-PARAM"),
        ({"max_new_tokens": 5}, "E-USAGE"),
        ({"plot": "/no/such/folder/plot.svg"}, "E-USAGE"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(exported, wrong, code):
    with pytest.raises(UsageProblem) as error:
        dlm_edge.tune(exported, progress=lambda line: pytest.fail(line), **wrong)
    assert error.value.code == code


def test_a_strange_record_is_refused_by_inspect(bundle):
    manifest = open_bundle(bundle).manifest
    changed = msgspec.structs.replace(manifest, measured={"tune": {"setting": 5}})
    (bundle / "manifest.json").write_bytes(msgspec.json.encode(changed))
    with pytest.raises(InputFileError) as error:
        inspect_artefact(bundle)
    assert error.value.code == "E-MANIFEST"
