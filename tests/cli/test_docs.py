"""The documentation says what the code does: generated pages are up to date, every example runs or says why it does not."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dlm_edge.errors import CODES
from dlm_edge.kernels import library_path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module", autouse=True)
def tools():
    sys.path.insert(0, str(ROOT / "tools"))
    yield
    sys.path.remove(str(ROOT / "tools"))


def examples(page):
    return importlib.import_module("doc_examples").examples(page)


@pytest.mark.parametrize("name", ["write_flags", "write_troubleshooting", "write_models", "write_samplers"])
def test_generated_pages_are_up_to_date(name, capsys):
    if name == "write_models" and library_path() is None:
        pytest.skip("sizes are those of an installation with native operators")
    assert importlib.import_module(name).main(["--check"]) == 0, capsys.readouterr().err


def test_every_error_code_has_advice():
    advice = importlib.import_module("write_troubleshooting").ADVICE
    assert set(advice) == set(CODES)
    assert all(cause and step for cause, step in advice.values())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_is_run_or_says_why_not(page):
    for example in examples(page):  # raises for a block that is neither
        assert example.reason is None or len(example.reason) > 5
        if example.reason is None:
            assert example.commands, f"{page.name}:{example.line} holds no command"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_and_flags_in_examples_exist(page):
    """Also in those that are not run."""
    import click

    from dlm_edge.cli.program import program
    from dlm_edge.verbs import VERBS

    for example in examples(page):
        if example.language == "python":
            continue
        for verb, rest in re.findall(r"\bdlm-edge ([a-z]+(?:-[a-z]+)*)([^|>\n;&]*)", example.text):
            assert verb in VERBS, f"{page.name}:{example.line}: {verb}"
            command = program.get_command(click.Context(program), verb)
            known = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
            for flag in re.findall(r"(?<=\s)--?[a-z][a-z-]*", re.sub(r"\"[^\"]*\"|'[^']*'|#.*", "", rest)):
                assert flag in known, f"{page.name}:{example.line}: {verb} {flag}"


def test_the_readme_leads_to_every_task():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("install", "first_run", "quantize", "export", "models", "samplers", "troubleshooting", "flags"):
        assert f"docs/{name}.md" in text, name


def write(tmp_path, text):
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    return examples(tmp_path / "page.md")


def test_blocks_are_found_with_their_marks(tmp_path):
    found = write(
        tmp_path,
        "```console\n$ dlm-edge doctor\nok\n$ true\n```\n<!-- not run: takes long -->\n```bash\nmake\n```\n```json\n{}\n```\n"
        "<!-- not run: a GPU -->\n\n    python x.py\n\n```python\nprint()\n```\n",
    )
    assert [(e.line, e.language, e.reason) for e in found] == [
        (1, "console", None), (7, "bash", "takes long"), (15, "", "a GPU"), (17, "python", None),
    ]  # fmt: skip
    assert found[0].commands == ["dlm-edge doctor", "true"]


@pytest.mark.parametrize(
    "text", ["```\ndlm-edge doctor\n```\n", "text\n\n    pip install x\n", "<!-- not run:  -->\n```bash\nmake\n```\n"]
)
def test_commands_that_nothing_runs_are_refused(tmp_path, text):
    with pytest.raises(ValueError, match="page.md"):
        write(tmp_path, text)


def test_a_failing_example_fails_the_run(tmp_path, monkeypatch):
    runner = importlib.import_module("run_readme")
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```console\n$ touch made; sleep 60 &\n$ test -e made\n```\n```bash\ntest ! -e made\ntrue\n```\n")
    with pytest.raises(SystemExit, match="page.md:5"):
        runner.main([str(page)])
    page.write_text(page.read_text().replace("! ", ""))
    assert runner.main([str(page)]) == 0


def test_the_runner_leaves_no_process_behind(tmp_path):
    """In a process of its own, which must end although an example leaves something running."""
    page = tmp_path / "page.md"
    page.write_text("```bash\nsleep 300 &\necho begun\n```\n")
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import pathlib, run_readme;"
    code += f"run_readme.ROOT = pathlib.Path({str(tmp_path)!r}); sys.exit(run_readme.main([{str(page)!r}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "begun" in done.stdout
