"""Completion scripts: shells parse them, and bash completes a verb, a flag and a choice with them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from dlm_edge.cli import main
from dlm_edge.cli.completion import SHELLS

PARSERS = {"bash": ["bash", "-n"], "zsh": ["zsh", "-n"], "fish": ["fish", "-n"]}


@pytest.fixture
def script(capsys, tmp_path):
    def write(shell):
        assert main(["completion", shell]) == 0
        path = tmp_path / f"script.{shell}"
        path.write_text(capsys.readouterr().out)
        return path

    return write


@pytest.mark.parametrize("shell", PARSERS)
def test_the_shell_parses_it(script, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([*PARSERS[shell], script(shell)], check=True, timeout=60)


def test_powershell_parses_it(script):
    if shutil.which("pwsh") is None:
        pytest.skip("pwsh is not installed")
    parse = f"$e = $null; [void][System.Management.Automation.Language.Parser]::ParseFile('{script('powershell')}', "
    parse += "[ref]$null, [ref]$e); exit $e.Count"
    subprocess.run(["pwsh", "-NoProfile", "-Command", parse], check=True, timeout=60)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_script_asks_the_program(script, shell):
    text = script(shell).read_text()
    assert "_DLM_EDGE_COMPLETE" in text and f"{shell}_complete" in text


def test_as_json(capsys):
    assert main(["completion", "fish", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shell"] == "fish" and "complete" in found["script"] and found["install"]


@pytest.fixture
def program(tmp_path):
    """A `dlm-edge` on the PATH of a shell."""
    file = tmp_path / "bin" / "dlm-edge"
    file.parent.mkdir()
    file.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dlm_edge "$@"\n')
    file.chmod(0o755)
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": f"{file.parent}{os.pathsep}{os.environ['PATH']}"}
    return {**os.environ, **paths}


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("dlm-edge gen", "generate"),
        ("dlm-edge generate bundle --max-new", "--max-new-tokens"),
        ("dlm-edge completion fi", "fish"),
        ("dlm-edge generate bundle --sampler hier", "hierarchical"),
    ],
)
def test_bash_completes(script, program, words, expected):
    ask = f'source {script("bash")}; COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}; COMP_LINE="{words}";'
    ask += (
        ' COMP_POINT=${#COMP_LINE}; compopt() { :; }; _dlm_edge_completion dlm-edge; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", ask], env=program, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [expected]


def test_powershell_gets_its_lines(program):
    """What the PowerShell script hands over and reads back, without PowerShell."""
    asked = {
        "_DLM_EDGE_COMPLETE": "powershell_complete",
        "COMP_WORDS": "dlm-edge\ngenerate\n--top",
        "COMP_CWORD": "--top",
    }
    done = subprocess.run(["dlm-edge"], env=program | asked, capture_output=True, text=True, check=True, timeout=60)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(kind, value) for kind, value, help in lines] == [("plain", "--top-k"), ("plain", "--top-p")]
    empty = asked | {"COMP_WORDS": "dlm-edge", "COMP_CWORD": ""}
    done = subprocess.run(["dlm-edge"], env=program | empty, capture_output=True, text=True, check=True, timeout=60)
    assert "plain\tgenerate\t" in done.stdout


def test_paths_are_left_to_the_shell(program):
    asked = {"_DLM_EDGE_COMPLETE": "bash_complete", "COMP_WORDS": "dlm-edge inspect bun", "COMP_CWORD": "2"}
    done = subprocess.run(["dlm-edge"], env=program | asked, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["file,bun"]
