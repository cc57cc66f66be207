"""`optimum-cli dlm-edge ...` hands every word to dlm-edge, and loads nothing before that."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

cli = pytest.importorskip("optimum.commands.optimum_cli", reason="needs the extra dlm-edge[optimum]")

from dlm_edge.cli import main  # noqa: E402
from tests.tiny import make_checkpoint  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "dlm_edge" / "optimum" / "register" / "register_dlm_edge.py"


def optimum_cli(*words):
    """What the program does with a command line, with our file read from the source tree; returns the exit code."""
    spec = importlib.util.spec_from_file_location("register_dlm_edge", PLUGIN)
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    root = cli.RootOptimumCLICommand("Optimum CLI tool", usage="optimum-cli")
    for command in [*cli.OPTIMUM_CLI_ROOT_SUBCOMMANDS, *plugin.REGISTER_COMMANDS]:
        cli.register_optimum_cli_subcommand(command, parent_command=root)
    args = root.parser.parse_args(words)
    with pytest.raises(SystemExit) as stopped:
        args.func(args).run()
    return stopped.value.code


@pytest.mark.parametrize("verb", ["quantize", "export"])
def test_help_is_that_of_dlm_edge(verb, capsys):
    assert main([verb, "--help"], program_name="optimum-cli dlm-edge") == 0
    expected = capsys.readouterr().out
    assert expected.startswith(f"Usage: optimum-cli dlm-edge {verb}")
    assert optimum_cli("dlm-edge", verb, "--help") == 0
    assert capsys.readouterr().out == expected


def test_options_may_stand_anywhere(tmp_path, capsys):
    source = make_checkpoint(tmp_path / "source", "sdar")
    packed, bundle = tmp_path / "packed", tmp_path / "bundle"
    words = ["--group-size=32", "--method", "rtn", str(source), "-o", str(packed), "--json"]
    assert optimum_cli("dlm-edge", "quantize", *words) == 0
    assert '"method": "rtn"' in capsys.readouterr().out
    assert optimum_cli("dlm-edge", "export", "-o", str(bundle), "--", str(packed)) == 0
    assert (bundle / "model.onnx").is_file()


def test_exit_codes_pass_through(tmp_path, capsys):
    assert optimum_cli("dlm-edge", "quantize") == 2
    assert optimum_cli("dlm-edge", "quantize", str(tmp_path), "-o", str(tmp_path / "out")) == 3
    assert "error E-CONFIG" in capsys.readouterr().err


def test_nothing_of_ours_is_loaded_for_other_commands():
    """So a broken or partial installation of dlm-edge cannot break optimum-cli."""
    script = (
        "import runpy, sys; runpy.run_path(sys.argv[1]);"
        "print(*(m for m in ('dlm_edge', 'click', 'torch', 'onnx') if m in sys.modules))"
    )
    command = [sys.executable, "-c", script, str(PLUGIN)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == ""
