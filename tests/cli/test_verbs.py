"""What all verbs share: --json, -q, -v, nearest matches, and a --help that imports nothing heavy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import click
import pytest

from dlm_edge.cli import main
from dlm_edge.cli.common_options import NearestChoice
from dlm_edge.cli.program import program
from dlm_edge.verbs import EXTRAS, VERBS

HEAVY = (
    "torch", "numpy", "onnx", "onnxruntime", "tokenizers", "safetensors", "rich", "msgspec", "minijinja", "starlette",
    "uvicorn", "asyncio", "platformdirs", "filelock", "readline", "dlm_edge.runtime", "dlm_edge.quant", "dlm_edge.export",
)  # fmt: skip


def command_of(verb):
    found = program.get_command(click.Context(program), verb)
    assert found is not None
    return found


def needed(verb):
    """Arguments that let parsing go on, one for each that the verb asks for."""
    words = []
    for parameter in command_of(verb).params:
        if isinstance(parameter, click.Argument) and parameter.required:
            words.append(parameter.type.choices[0] if isinstance(parameter.type, click.Choice) else "/no/such/place")
        elif parameter.required:
            words += [parameter.opts[0], "/no/such/place"]
            if isinstance(parameter.type, click.Choice):
                words[-1] = parameter.type.choices[0]
    return words


def options_of(verb):
    return [p for p in command_of(verb).params if isinstance(p, click.Option)]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_json_quiet_and_verbose(verb):
    flags = {flag for option in options_of(verb) for flag in option.opts}
    assert {"--json", "-q", "--quiet", "-v", "--verbose"} <= flags
    assert set(EXTRAS) <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_a_help_text_or_says_what_it_takes(verb):
    for option in options_of(verb):
        assert option.help or isinstance(option.type, (click.Choice, click.IntRange, click.FloatRange)), option.opts


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_flag_names_the_nearest_one(verb, capsys):
    for option in options_of(verb):
        flag = max(option.opts, key=len)
        if len(flag) < 6:
            continue
        wrong = flag[:-2] + flag[-1] + flag[-2] if flag[-1] != flag[-2] else flag + "x"
        if any(wrong in other.opts for other in options_of(verb)):
            continue
        assert main([verb, *needed(verb), wrong]) == 2
        assert flag in capsys.readouterr().err, wrong
        assert main([verb, *needed(verb), "--json", wrong]) == 2
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["code"] == "E-USAGE" and flag in error["message"], wrong
        break
    else:
        raise AssertionError(f"{verb} has no long flag to try")


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_name_names_the_nearest_one(verb, capsys):
    """Every option and argument with a fixed set of values."""
    for parameter in command_of(verb).params:
        if not isinstance(parameter.type, click.Choice):
            continue
        assert isinstance(parameter.type, NearestChoice), "a choice that with_common_options did not see"
        name = max(map(str, parameter.type.choices), key=len)
        if isinstance(parameter, click.Argument):
            words = [name + "q"]
        else:
            words = [*needed(verb), f"{max(parameter.opts, key=len)}={name}q"]
        assert main([verb, *words]) == 2
        output = capsys.readouterr().err
        assert "Did you mean" in output and name in output, parameter.name


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_verb_names_the_nearest_one(verb, capsys):
    assert main([verb[:-2] + verb[-1] + verb[-2]]) == 2
    assert verb in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["generate", "BUNDLE", "-p", "x", "--sampler", "treshold"], "did you mean threshold"),
        (["generate", "BUNDLE", "-p", "x", "--attention", "loza"], "did you mean losa"),
        (["chat", "BUNDLE", "--selector", "bound", "--attention", "losa"], "did you mean bounds"),
        (["eval", "BUNDLE", "--task", "coppy"], "did you mean copy"),
        (["eval", "BUNDLE", "--attention", "loza"], "did you mean losa"),
        (["bench", "BUNDLE", "--attention", "loza"], "did you mean losa"),
        (["export", "CHECKPOINT", "-o", "OUT", "--cache", "kv-int5"], "did you mean kv-int"),
        (["estimate", "CHECKPOINT", "--recipe", "w44"], "did you mean w4"),
        (["estimate", "CHECKPOINT", "--cache", "kv-int5"], "did you mean kv-int"),
    ],
)
def test_names_that_are_checked_later_name_the_nearest_one_too(
    arguments, expected, bundle, checkpoint, tmp_path, capsys
):
    places = {"BUNDLE": bundle, "CHECKPOINT": checkpoint, "OUT": tmp_path / "out"}
    assert main([str(places.get(word, word)) for word in arguments]) == 2
    assert expected in capsys.readouterr().err


def test_quiet_leaves_the_result_alone(checkpoint, tmp_path, capsys):
    assert main(["export", str(checkpoint), "-o", str(tmp_path / "a")]) == 0
    told = capsys.readouterr()
    assert main(["export", str(checkpoint), "-o", str(tmp_path / "b"), "-q"]) == 0
    quiet = capsys.readouterr()
    assert told.err and not quiet.err and "written" in quiet.out


def test_verbose_shows_where_an_error_came_from(capsys):
    assert main(["inspect", "/no/such/place"]) == 3
    assert "Traceback" not in capsys.readouterr().err
    assert main(["inspect", "/no/such/place", "-v"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_progress_in_a_pipe_is_lines_without_control_characters(checkpoint, tmp_path, capsys):
    assert main(["export", str(checkpoint), "-o", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().err
    assert text.endswith("\n") and "\r" not in text and "\x1b" not in text


def test_the_help_of_no_verb_imports_what_only_its_work_needs():
    """In one process of its own: what any of them imports, all of them are asked for."""
    code = f"""
import sys
from dlm_edge.cli import main
from dlm_edge.verbs import VERBS
for verb in ("", *VERBS):
    before = set(sys.modules)
    assert main([verb, "--help"] if verb else ["--help"]) == 0
    heavy = set({HEAVY!r}) & set(sys.modules)
    assert not heavy, (verb, heavy)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=120)


def test_a_package_that_is_missing_is_named_with_the_line_that_adds_it():
    """As if it had been removed: the finder refuses it."""
    code = """
import importlib.abc, sys
missing = sys.argv.pop(1)
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
from dlm_edge.cli import main
sys.exit(main())
"""
    for missing, verb, hint in (("numpy", "doctor", "pip install numpy"), ("torch", "quantize", "dlm-edge[quant]")):
        words = [missing, verb, *needed(verb), "--json"]
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 5, done.stderr
        error = json.loads(done.stdout)["error"]
        assert error["code"] == "E-DEPENDENCY" and hint in error["hint"] and missing in error["message"]


def test_unknown_keys_of_our_files_name_the_nearest_one(bundle, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cache_layuot"] = manifest.pop("cache_layout")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert main(["inspect", str(folder)]) == 3
    assert "did you mean cache_layout?" in capsys.readouterr().err
    chat = {"schema": 1, "kind": "dlm-edge chat", "continued": False, "mesages": [], "settings": {}}
    (tmp_path / "chat.json").write_text(json.dumps(chat))
    assert main(["chat", str(bundle), "--load", str(tmp_path / "chat.json")]) == 3
    assert "did you mean messages?" in capsys.readouterr().err
