"""`dlm-edge quantize`, as a user calls it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dlm_edge.cli import main
from tests.tiny import make_checkpoint

KEYS = {
    *("output", "method", "bits_per_weight", "size_bytes", "source_size_bytes", "seconds", "peak_rss_bytes"),
    *("layers", "fallbacks"),
}
LAYER_KEYS = {
    *("name", "bits", "method", "error", "rtn_error", "seconds", "notes"),
    *("tokens", "effective_rank", "input_peak", "damping", "treatment"),
}


@pytest.fixture
def source(tmp_path):
    return str(make_checkpoint(tmp_path / "source", "sdar", n_layers=1))


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["quantize", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_progress_goes_to_stderr_and_the_result_to_stdout(capsys, source, tmp_path):
    code, out, err = run(capsys, source, "-o", str(tmp_path / "out"), "--method", "rtn")
    assert code == 0
    assert "8 weights, 4.25 bits each" in out and f"next      dlm-edge export {tmp_path / 'out'}" in out
    assert err.count("model.layers.0.") == 7 and "model.layers" not in out


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_json_is_one_object_with_the_promised_keys(capsys, source, tmp_path, more):
    code, out, _ = run(capsys, source, "-o", str(tmp_path / "out"), "--method", "rtn", "--bits", "3", "--json", *more)
    report = json.loads(out)
    assert code == 0 and KEYS <= set(report) and report["dry_run"] is bool(more)
    assert len(report["layers"]) == 8 and all(set(layer) == LAYER_KEYS for layer in report["layers"])
    assert (tmp_path / "out").exists() is not bool(more)


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["--bits", "5"], 2, "bits"),
        (["--group-size", "48"], 2, "group-size"),
        (["--method", "awk"], 2, "method"),
        (["--bitts", "4"], 2, "--bits"),
        (["--skip", "nothing.like.this"], 2, "E-QUANT"),
        (["--resume", "--restart"], 2, "E-USAGE"),
        (["--recipe", "w5"], 2, "recipe"),
        (["--method", "w8a8", "--bits", "4"], 2, "E-QUANT"),
        (["--method", "nf4", "--zero", "integer"], 2, "E-QUANT"),
        (["--bits", "2.5"], 2, "mixed"),
        (["--method", "nf4", "--tune", "4"], 2, "E-QUANT"),
        (["--dry-run", "--resume"], 2, "E-USAGE"),
        (["--method", "rtn", "--calib-data", "x.txt"], 2, "E-USAGE"),
        (["--calib-data", "missing.txt"], 3, "E-CALIB"),
    ],
)
def test_wrong_usage_is_named(capsys, source, tmp_path, words, code, named):
    found, out, err = run(capsys, source, "-o", str(tmp_path / "out"), *words)
    assert found == code and named in err and not out
    assert not (tmp_path / "out").exists()


def test_with_json_an_error_is_an_object_too(capsys, source, tmp_path):
    (tmp_path / "out").mkdir()
    code, out, _ = run(capsys, source, "-o", str(tmp_path / "out"), "--method", "rtn", "--json")
    assert code == 2 and json.loads(out)["error"]["code"] == "E-EXISTS"


def test_help_does_not_import_torch():
    program = (
        "import sys; from dlm_edge.cli import main; main(['quantize', '--help']); assert 'torch' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "--group-size" in found.stdout


def test_an_existing_output_is_refused_before_any_work(capsys, source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    code, _, err = run(capsys, source, "-o", str(tmp_path / "out"), "--method", "gptq", "--bits", "4")
    assert code == 2 and "E-EXISTS" in err and "states" not in err
