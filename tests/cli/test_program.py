"""The command line as a user meets it: exit codes, messages, JSON, and what it imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from dlm_edge.cli import main
from dlm_edge.cli.program import VERBS
from dlm_edge.errors import CODES
from dlm_edge.export import export
from tests.packed_folder import pack_linears, random_tensor
from tests.tiny import make_checkpoint


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    source = make_checkpoint(folder / "source", "sdar")
    export(source, folder / "bundle")
    return folder / "bundle"


def test_help_imports_nothing_heavy():
    code = """
import sys
from dlm_edge.cli import main
main(["--help"])
heavy = {"torch", "numpy", "onnx", "onnxruntime", "tokenizers", "rich"} & set(sys.modules)
assert heavy <= {"numpy"} and "torch" not in heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert "Usage: dlm-edge " + verb in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["genrate"], 2, "did you mean generate"),
        (["inspect"], 2, "Missing argument"),
        (["export", "reference", "--otput", "x"], 2, "--output"),
        (["inspect", "/nowhere"], 3, "error E-"),
    ],
)
def test_wrong_usage(arguments, code, expected, capsys):
    assert main(arguments) == code
    assert expected in capsys.readouterr().err


def test_a_failure_with_json_is_one_object(capsys):
    assert main(["inspect", "/nowhere", "--json"]) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert set(error) == {"code", "message", "hint"}
    assert error["code"] in CODES and error["hint"]


def test_wrong_usage_with_json_is_one_object_too(capsys):
    assert main(["export", "reference", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "E-USAGE"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_no_bug_of_ours(tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0)
    assert main(["inspect", str(tmp_path / "locked" / "model")]) == 3
    assert "E-FILE" in capsys.readouterr().err


def test_export_prints_the_promised_keys(bundle, tmp_path, capsys):
    assert main(["export", str(bundle.parent / "source"), "-o", str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    promised = ["output", "size_bytes", "opset", "operator_version", "nodes", "parity", "seconds", "peak_rss_bytes"]
    assert set(promised) <= set(report)
    assert main(["export", str(bundle.parent / "source"), "-o", str(tmp_path / "out")]) == 2
    assert "E-EXISTS" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["source", "bundle"])
def test_inspect_tells_the_conventions(bundle, name, capsys):
    assert main(["inspect", str(bundle.parent / name), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == {"source": "checkpoint", "bundle": "bundle"}[name]
    assert found["family"] == "sdar" and found["conventions"]["block_length"] == 8
    assert found["cache_bytes_per_token"] == 2 * 3 * 2 * 16 * 4  # K and V, layers, KV heads, head_dim, float32


def test_the_profile_is_what_export_and_inspect_name(tmp_path, capsys):
    source = pack_linears(make_checkpoint(tmp_path / "source", "sdar"), lambda shape: random_tensor(shape, 4, 32))
    assert main(["export", str(source), "-o", str(tmp_path / "out"), "--profile", "w4a8-blocks"]) == 0
    assert "profile   w4a8-blocks" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "profile       w4a8-blocks\n" in capsys.readouterr().out
    assert main(["export", str(source), "-o", str(tmp_path / "auto"), "--json"]) == 0
    chosen = json.loads(capsys.readouterr().out)["profile"]
    assert main(["inspect", str(tmp_path / "auto")]) == 0
    assert f"profile       {chosen}, the fastest on " in capsys.readouterr().out
    assert main(["export", str(source), "-o", str(tmp_path / "none"), "--profile", "w4a8-block"]) == 2
    assert "did you mean w4a8-blocks" in capsys.readouterr().err


def test_doctor_is_content_here(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["onnxruntime"]["version"]


def test_the_cache_chosen_at_export_is_what_inspect_names(tmp_path, capsys):
    source, out = str(make_checkpoint(tmp_path / "source", "llada")), str(tmp_path / "out")
    assert main(["export", source, "-o", out, "--cache", "x-int4,group=32"]) == 0
    assert main(["inspect", out]) == 0
    assert "cache         x-int4, 120 B per token" in capsys.readouterr().out
    assert main(["export", source, "-o", out, "--restart", "--cache", "x-int5"]) == 2
    assert "E-PARAM" in capsys.readouterr().err


def test_bench_reports_steps_beside_speed(bundle, capsys):
    arguments = [
        "bench",
        str(bundle),
        "--prompt-tokens",
        "9",
        "--new-tokens",
        "8",
        "--repeats",
        "1",
        "--json",
        "--no-roofline",
    ]
    assert main([*arguments, "--sampler", "static"]) == 0
    report = json.loads(capsys.readouterr().out)
    (row,) = report["rows"]
    assert row["prompt_tokens"] == 9 and row["new_tokens"] == 8
    # The first block holds 7 tokens after the prompt, the canvas is rounded up to the next: 15 steps, one of
    # which stores the first block, and the prefill of the prompt's one whole block.
    assert row["steps_per_token"] == pytest.approx(16 / 8)
    assert report["machine"] and report["versions"]["onnxruntime"]


def test_eval_reports_quality_with_errors(bundle, capsys):
    arguments = ["eval", str(bundle), "--task", "copy", "--samples", "2", "--against", str(bundle), "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tasks"]["copy"]["n"] == 2
    assert report["delta_nll"] == 0 and report["commit_flip_rate"] == 0  # against itself
    assert sum(bucket["tokens"] for bucket in report["masked_nll_by_bucket"]) > 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_output_onto_a_full_disk(form):
    command = [sys.executable, "-m", "dlm_edge", "estimate", "reference", *form]
    with open("/dev/full", "w") as full:
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert found.returncode == 4 and "error E-IO: the output could not be written" in found.stderr
    assert "Traceback" not in found.stderr


def run_in_shell(bundle, redirection):
    command = f"{sys.executable} -m dlm_edge generate {bundle} -p x --max-new-tokens 8 --json-lines {redirection}"
    return subprocess.run(["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True)


@pytest.mark.parametrize("reader", ["true", "head -1"])
def test_a_reader_that_leaves_is_no_failure(bundle, reader):
    run = run_in_shell(bundle, f"| {reader}")
    assert (run.returncode, run.stderr) == (0, "")


def test_a_closed_standard_output_is_said(bundle):
    run = run_in_shell(bundle, ">&-")
    assert run.returncode == 4 and run.stderr.startswith("error E-IO: standard output is closed")


def test_a_prompt_cache_that_cannot_be_written_leaves_one_object(bundle, capfd):
    arguments = ["generate", str(bundle), "-p", "a b c d e f g h", "--max-new-tokens", "40", "--ignore-eos"]
    assert main([*arguments, "--json", "--prompt-cache", "/proc/no_file"]) != 0
    output = capfd.readouterr()
    assert json.loads(output.out)["new_tokens"] == 40 and "error E-" in output.err


def test_an_exit_that_no_broken_pipe_caused_is_passed_on(monkeypatch):
    def leave(**arguments):
        raise SystemExit(7)

    monkeypatch.setattr("dlm_edge.cli.program.program.main", leave)
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 7
