"""`dlm-edge doctor` finds what is planted, names the line that repairs it, and is content where nothing is wrong."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path

import numpy as np
import pytest

from dlm_edge import diagnosis, kernels, operator_check
from dlm_edge.cli import main
from dlm_edge.diagnosis import diagnose
from dlm_edge.errors import CODES, EnvironmentProblem
from dlm_edge.kernels import library
from dlm_edge.one_node_model import one_node_model
from dlm_edge.requirements import Requirement, numbers, parse, requirements
from dlm_edge.runtime import onnxruntime_guard

needs_library = pytest.mark.skipif(kernels.library_path() is None, reason="the native library is not built")


@pytest.fixture(autouse=True)
def load_anew():
    library._load.cache_clear()


def only(found, code):
    """The one finding of a code; every finding is complete."""
    assert all(f.code in CODES and f.message and f.hint for f in found.findings)
    (finding,) = [f for f in found.findings if f.code == code]
    return finding


@pytest.fixture
def installed(monkeypatch):
    """installed(name=version, ...): what the metadata says; None means that it is not there."""
    real = diagnosis.version_of

    def plant(**versions):
        by_name = {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(
            diagnosis, "version_of", lambda name: by_name.get(name, real(name)) if name in by_name else real(name)
        )

    return plant


@pytest.fixture
def wheels(monkeypatch):
    """The distributions that own the module onnxruntime."""
    return lambda *names: monkeypatch.setattr(diagnosis, "installed_distributions", lambda: list(names))


@pytest.fixture
def module(monkeypatch):
    """A module in place of onnxruntime; or an exception when it is imported."""

    def plant(found):
        def load():
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(diagnosis, "load_onnxruntime", load)

    return plant


def fake_module(version="1.31.1", providers=("CPUExecutionProvider",)):
    return types.SimpleNamespace(__version__=version, get_available_providers=lambda: list(providers))


def test_nothing_is_wrong_here(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and not [f for f in found["findings"] if f["level"] == "error"]
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("ok\n")


def test_a_broken_set_up_exits_with_five(wheels, capsys):
    wheels()
    assert main(["doctor", "--json"]) == 5
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"] and found["onnxruntime"]["distribution"] is None
    assert main(["doctor"]) == 5
    output = capsys.readouterr().out
    assert output.endswith("broken\n") and "-m pip install" in output


def test_no_onnxruntime(wheels):
    wheels()
    finding = only(diagnose(), "E-ORT")
    assert finding.level == "error" and "not installed" in finding.message and "[cpu]" in finding.hint


def test_two_wheels(wheels):
    wheels("onnxruntime", "onnxruntime-gpu")
    finding = only(diagnose(), "E-ORT")
    assert "uninstall -y onnxruntime onnxruntime-gpu" in finding.hint
    assert finding.hint.endswith("--force-reinstall --no-deps onnxruntime-gpu")


def test_a_wheel_that_cannot_be_imported(wheels, module, installed):
    wheels("onnxruntime-gpu")
    installed(onnxruntime_gpu="1.30.0")
    module(
        EnvironmentProblem("E-ORT", "libstdc++.so.6: version not found", "pip install --force-reinstall onnxruntime")
    )
    finding = only(diagnose(), "E-ORT")
    assert "libstdc++" in finding.message and finding.hint.endswith("onnxruntime-gpu==1.30.0")


def test_a_folder_that_is_left_of_a_wheel(wheels, module, installed):
    """What uninstalling one of two wheels leaves imports, and holds nothing."""
    wheels("onnxruntime")
    installed(onnxruntime="1.31.1")
    module(types.SimpleNamespace())
    assert only(diagnose(), "E-ORT").hint.endswith("--force-reinstall --no-deps onnxruntime==1.31.1")


def test_files_of_another_version(wheels, module, installed):
    wheels("onnxruntime")
    installed(onnxruntime="1.31.1")
    module(fake_module("1.29.0"))
    found = diagnose()
    assert "its files are of 1.29.0" in [f for f in found.findings if f.code == "E-ORT"][0].message and not found.ok


def test_a_version_that_is_too_old(wheels, module, installed):
    wheels("onnxruntime")
    installed(onnxruntime="1.20.0")
    module(fake_module("1.20.0"))
    findings = [f for f in diagnose().findings if f.code == "E-ORT"]
    assert "onnxruntime 1.20.0 is not" in findings[0].message and "'onnxruntime>=" in findings[0].hint


@pytest.mark.parametrize(
    ("name", "providers", "lacking"),
    [("onnxruntime-gpu", ("CPUExecutionProvider",), "CUDA"), ("onnxruntime", ("AzureExecutionProvider",), "CPU")],
)
def test_a_missing_provider(wheels, module, installed, name, providers, lacking):
    wheels(name)
    installed(**{name.replace("-", "_"): "1.31.1"})
    module(fake_module(providers=providers))
    messages = [f.message for f in diagnose().findings if f.code == "E-ORT"]
    assert f"{name} lacks its {lacking} provider: files of another distribution lie over it" in messages


def test_no_native_library_is_a_note(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    found = diagnose()
    finding = only(found, "E-NATIVE")
    assert finding.level == "note" and "DLM_EDGE_NATIVE=1" in finding.hint and found.ok


def test_a_library_that_cannot_be_loaded(monkeypatch, tmp_path):
    (tmp_path / library.FILE_NAME).write_bytes(b"not a library")
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    found = diagnose()
    assert "cannot be loaded" in only(found, "E-NATIVE").message and not found.ok
    assert "DLM_EDGE_NATIVE=1" in only(found, "E-NATIVE").hint


@needs_library
def test_a_library_of_another_version(monkeypatch):
    monkeypatch.setattr(library, "OPERATOR_VERSION", 99)
    assert "operator version" in only(diagnose(), "E-NATIVE").message


@needs_library
def test_a_library_that_onnxruntime_refuses(monkeypatch):
    """Another ABI: the library loads, and registers nothing."""
    monkeypatch.setattr(kernels, "register", lambda options: True)
    finding = only(diagnose(), "E-NATIVE")
    assert finding.level == "error" and "cannot use the native operators" in finding.message


@needs_library
@pytest.mark.parametrize(
    "definition", ["prefix_block_attention", "dequantize_rows", "quantize_rows", "select_pages", "pattern_attention"]
)
def test_a_kernel_that_computes_something_else(monkeypatch, definition):
    """Seen from the other side: the definition is changed, by a thousandth or one choice."""
    real = getattr(operator_check, definition)

    def wrong(*args, **options):
        found = real(*args, **options)
        if isinstance(found, np.ndarray):
            return found * np.float32(1.001)
        first = found[0] ^ 1 if found[0].dtype == np.uint8 else found[0] * np.float32(1.001)
        return type(found)(first, *found[1:])

    monkeypatch.setattr(operator_check, definition, wrong)
    finding = only(diagnose(), "E-NATIVE")
    assert "from its definition" in finding.message and finding.level == "error"


def test_every_operator_of_the_library_is_tested():
    source = Path(kernels.__file__).parent / "csrc" / "library.cpp"
    if not source.is_file():
        pytest.skip("needs the sources of the library")
    listed = re.search(r"operators\[\] = \{(.*?)\};", source.read_text(encoding="utf-8"), re.DOTALL)
    names = {name.replace("Attention", "PrefixBlockAttention") if name == "Attention" else name
             for name in re.findall(r"(\w+)Operator\(\)", listed[1])}  # fmt: skip
    assert names == {case.operator for case in operator_check.make_cases(0)}


@needs_library
def test_the_kernels_agree_for_other_numbers_too():
    ort = onnxruntime_guard.load_onnxruntime()
    for seed in range(1, 4):
        assert max(operator_check.differences(ort, seed=seed).values()) <= operator_check.TOLERANCE


def test_a_shape_or_a_nan_is_no_agreement():
    ones = np.ones(3, np.float32)
    assert operator_check.largest(ones, np.ones(4)) == np.inf
    assert operator_check.largest(ones * np.nan, ones) == np.inf
    assert operator_check.largest(np.array([np.inf]), np.array([np.inf])) == 0


def test_a_missing_extra_is_a_note_with_its_verbs(installed):
    installed(torch=None)
    found = diagnose()
    assert found.ok and found.verbs["quantize"] == ["torch"] and found.verbs["generate"] == []
    notes = {f.message: f.hint for f in found.findings if f.code == "E-DEPENDENCY"}
    assert any("quantize, demo: torch" in message and "[quant]" in hint for message, hint in notes.items())


def test_a_missing_or_old_package_that_all_need_is_an_error(installed):
    installed(tokenizers=None, numpy="1.20.0")
    found = diagnose()
    messages = {f.message: f.hint for f in found.findings if f.level == "error"}
    assert not found.ok and any("tokenizers is not installed" in m for m in messages)
    assert any("numpy 1.20.0 is not" in m and "pip install 'numpy>=" in hint for m, hint in messages.items())


def test_a_gpu_that_this_onnxruntime_cannot_use(monkeypatch):
    monkeypatch.setattr(diagnosis.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    done = types.SimpleNamespace(returncode=0, stdout="NVIDIA Test, 81559 MiB, 570.1\n", stderr="")
    monkeypatch.setattr(diagnosis.subprocess, "run", lambda *args, **options: done)
    ort = onnxruntime_guard.load_onnxruntime()
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime offers CUDA")
    found = diagnose()
    assert found.gpu == "NVIDIA Test, 81559 MiB, 570.1" and found.ok
    assert "[cuda]" in only(found, "E-DEVICE").hint and "uninstall -y onnxruntime" in only(found, "E-DEVICE").hint


def test_a_cuda_provider_whose_libraries_are_missing(monkeypatch, module, wheels, installed):
    class Session:
        def __init__(self, *args, **options):
            raise RuntimeError("libcudnn.so.9: cannot open shared object file")

    monkeypatch.setattr(diagnosis.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    done = types.SimpleNamespace(returncode=0, stdout="NVIDIA Test, 81559 MiB, 570.1\n", stderr="")
    monkeypatch.setattr(diagnosis.subprocess, "run", lambda *args, **options: done)
    monkeypatch.setattr(diagnosis, "look_at_operators", lambda found, ort: None)
    wheels("onnxruntime-gpu")
    installed(onnxruntime_gpu="1.31.1")
    ort = fake_module(providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    ort.SessionOptions, ort.InferenceSession = types.SimpleNamespace, Session
    module(ort)
    finding = only(diagnose(), "E-DEVICE")
    assert "libcudnn" in finding.message and finding.level == "error" and "[cuda]" in finding.hint


def test_a_cache_folder_that_cannot_be_written(monkeypatch):
    monkeypatch.setattr(diagnosis.os, "access", lambda path, mode: False)
    assert "XDG_CACHE_HOME" in only(diagnose(), "E-IO").hint


def test_the_model_of_one_node_is_what_onnx_would_write():
    onnx = pytest.importorskip("onnx", reason="needs the export extra")
    kinds = {"a": np.dtype(np.float32), "b": np.dtype(np.int8)}
    data = one_node_model(
        ("Op", "domain", 7), kinds, {"c": np.dtype(np.uint8)}, overload="o", attributes={"n": 300, "s": "x"}
    )
    model = onnx.load_model_from_string(data)
    (node,) = model.graph.node
    assert (node.op_type, node.domain, node.overload, list(node.input)) == ("Op", "domain", "o", ["a", "b"])
    assert {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} == {"n": 300, "s": b"x"}
    assert {o.domain: o.version for o in model.opset_import} == {"": 24, "domain": 7} and model.ir_version == 11
    assert [i.type.tensor_type.elem_type for i in (*model.graph.input, *model.graph.output)] == [1, 3, 2]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("numpy>=1.26", Requirement("numpy", ">=1.26", None)),
        ('onnxruntime<2,>=1.24.4; extra == "cpu"', Requirement("onnxruntime", ">=1.24.4,<2", "cpu")),
        ("onnxruntime-gpu[cuda,cudnn]<2; extra == 'cuda'", Requirement("onnxruntime-gpu", "<2", "cuda")),
        ("torch (>=2.4) ; extra == 'quant'", Requirement("torch", ">=2.4", "quant")),
        ('dlm-edge[cpu]; extra == "dev"', None),
    ],
)
def test_requirements_are_read(line, expected):
    assert parse(line) == expected


@pytest.mark.parametrize(
    ("versions", "version", "accepted"),
    [
        (">=1.24.4,<2", "1.31.1", True),
        (">=1.24.4,<2", "1.24.3", False),
        (">=1.24.4,<2", "2.0.0", False),
        (">=2.4", "2.13.0+cpu", True),
        (">=2.4", "2.4", True),
        ("", "0.1", True),
    ],
)
def test_versions_are_compared_as_numbers(versions, version, accepted):
    assert Requirement("x", versions, None).accepts(version) == accepted


def test_our_own_requirements_are_known():
    by_extra = {r.extra for r in requirements()}
    assert {None, "cpu", "cuda", "cli", "quant", "export"} <= by_extra and numbers("1.10.0rc1") == (1, 10)


def test_the_order_of_a_metadata_builder_does_not_show():
    assert parse("onnxruntime<2,>=1.24.4; extra == 'cpu'") == parse("onnxruntime>=1.24.4,<2; extra == 'cpu'")
