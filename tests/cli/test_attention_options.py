"""`bench` times several policies beside one another, each with the options that are its own."""

from __future__ import annotations

import json

import pytest

from dlm_edge.cli import main
from dlm_edge.cli.attention_options import FLAGS, OF_LAYOUTS, OPTIONS, for_each_policy, policy_options
from dlm_edge.errors import UsageProblem
from dlm_edge.export import export
from dlm_edge.runtime.attention import POLICIES
from tests.tiny import make_checkpoint


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    export(make_checkpoint(folder / "sdar", "sdar"), folder / "bundle")
    return folder / "bundle"


def test_every_flag_is_taken():
    def command(**options):
        return options

    declared = {parameter.name for parameter in policy_options(command).__click_params__}  # type: ignore[attr-defined]
    assert declared == set(FLAGS) and len(OPTIONS) == len(FLAGS)
    assert set(FLAGS) - set(OF_LAYOUTS) <= {option for policy in POLICIES.values() for option in policy.options}


def test_options_go_to_the_policies_that_have_them():
    rows = for_each_policy(("dense", "losa", "flashblock"), {"budget": 64, "changed": 2})
    assert rows == [
        {"attention": "dense"},
        {"attention": "losa", "budget": 64},
        {"attention": "flashblock", "changed": 2},
    ]
    with pytest.raises(UsageProblem, match="--page-size is no option of dense, flashblock"):
        for_each_policy(("dense", "flashblock"), {"page_size": 8})
    rows = for_each_policy(("dense", "losa"), {"budget": 64, "planes": "both"})
    assert rows == [{"attention": "dense", "planes": "both"}, {"attention": "losa", "budget": 64, "planes": "both"}]


def test_bench_says_what_every_policy_read(bundle, capsys):
    arguments = "--prompt-tokens 64 --new-tokens 16 --repeats 1 --sampler static --attention dense --attention losa --no-roofline"
    assert main(["bench", str(bundle), *arguments.split(), "--budget", "8", "--json"]) == 0
    dense, losa = json.loads(capsys.readouterr().out)["rows"]
    assert (dense["attention"], dense["density"], dense["active_rows"], dense["pages_read"]) == ("dense", 1, 1, 1)
    assert losa["attention"] == "losa" and losa["budget"] == 8
    assert 0 < losa["density"] < 1 and 0 < losa["active_rows"] < 1 and losa["pages_read"] >= 1
    assert dense["steps_per_block"] == losa["steps_per_block"] > 1


def test_an_unknown_policy_is_named_with_the_nearest_one(bundle, capsys):
    assert main(["bench", str(bundle), "--attention", "loza", "--budget", "8"]) == 2
    assert "did you mean losa" in capsys.readouterr().err
