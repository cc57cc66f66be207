"""What an installation consists of, and that no part pulls in what it must not."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def settings():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


PLUGIN = "optimum.commands.register"  # a namespace of optimum's


def test_every_folder_is_listed():
    setuptools = settings()["tool"]["setuptools"]
    found = {PLUGIN}
    for package, folder in setuptools["package-dir"].items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    assert found == set(setuptools["packages"]), "list the new folder in [tool.setuptools] packages"


def test_the_plugin_folder_stays_a_namespace():
    """An __init__.py of ours would hide the commands of other distributions from optimum-cli."""
    folder = ROOT / settings()["tool"]["setuptools"]["package-dir"][PLUGIN]
    assert [f.name for f in folder.iterdir() if f.suffix == ".py"] == ["register_dlm_edge.py"]


def test_onnxruntime_is_named_by_exclusive_extras_only():
    project = settings()["project"]
    assert not any("onnxruntime" in d for d in project["dependencies"])
    naming = {n for n, ds in project["optional-dependencies"].items() if any(d.startswith("onnxruntime") for d in ds)}
    assert naming == {"cpu", "cuda"}


def test_the_command_line_is_the_same_from_python():
    import dlm_edge

    assert dlm_edge.Engine and dlm_edge.quantize and dlm_edge.evaluate and callable(dlm_edge.export)
    with pytest.raises(AttributeError):
        dlm_edge.exprot  # noqa: B018
    assert "dlm_edge.runtime" in sys.modules
