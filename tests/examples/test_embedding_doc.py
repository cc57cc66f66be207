"""docs/embedding.md: its programs run, and what it shows of the application is what the application says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^(?:<!-- not run: (.*?) -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = [text for reason, language, text in BLOCK.findall(PAGE) if language == "python" and not reason]
EXCERPTS = [(reason, text) for reason, language, text in BLOCK.findall(PAGE) if language == "python" and reason]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With `bundle`, as the page's first command makes it."""
    export = pytest.importorskip("dlm_edge.export", reason="needs onnx").export
    made = tmp_path_factory.mktemp("embedding")
    export("reference", str(made / "bundle"))
    return made


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_a_program_runs(folder, number):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAMS[number]], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and not done.stderr


def test_the_first_program_is_at_most_ten_lines():
    assert len(PROGRAMS[0].splitlines()) <= 10


def test_excerpts_are_what_the_files_say():
    assert len(EXCERPTS) >= 4
    for reason, text in EXCERPTS:
        path = ROOT / reason.removeprefix("of ")
        lines, wanted = path.read_text(encoding="utf-8").splitlines(), text.splitlines()
        n = len(wanted)
        assert any(dedent("\n".join(lines[i : i + n])).splitlines() == wanted for i in range(len(lines))), text


def test_the_table_names_every_file_of_the_application():
    named = set(re.findall(r"`(\w+\.(?:py|spec))`", PAGE))
    assert {path.name for path in (ROOT / "examples" / "desktop_app").iterdir() if path.is_file()} <= named
