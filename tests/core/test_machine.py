"""What the machine says of itself."""

from __future__ import annotations

import numpy as np
import pytest

from dlm_edge import kernels, machine
from dlm_edge.runtime.onnxruntime_guard import load_onnxruntime
from dlm_edge.runtime.session import session_options

TOLD = "processor\t: 0\nmodel name\t: A: core\nflags\t\t: sse2 {}\n\nprocessor\t: 1\nmodel name\t: other\n"
KEY = "session.x64quantprecision"


@pytest.mark.parametrize(
    ("flag", "expected"), [("avx512_vnni", True), ("avx_vnni", True), ("avx2", False), ("xavx_vnni", False)]
)
def test_flags_and_name(tmp_path, monkeypatch, flag, expected):
    (tmp_path / "cpuinfo").write_text(TOLD.format(flag))
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert machine.has_dots_of_bytes() == expected
    assert machine.processor() == "A: core"
    options = session_options(load_onnxruntime(), 1)
    if expected:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry(KEY)
    else:
        assert options.get_session_config_entry(KEY) == "1"


@pytest.mark.parametrize(("simd", "expected"), [("amx", True), ("avx_vnni", True), ("avx512", False), (None, False)])
def test_without_proc_the_library_tells(tmp_path, monkeypatch, simd, expected):
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(kernels, "simd", lambda: simd)
    assert machine.has_dots_of_bytes() == expected


def test_integer_products_do_not_saturate_here():
    """With largest bytes everywhere pairs would not fit 16 bits."""
    import onnxruntime as ort

    from dlm_edge.one_node_model import one_node_model

    weight, rows = np.full((64, 16), 127, np.int8), np.full((4, 64), 255, np.uint8)
    model = one_node_model(
        ("MatMulInteger", "", 24), {"a": np.dtype("uint8")}, {"c": np.dtype("int32")}, constants={"b": weight}
    )
    session = ort.InferenceSession(model, session_options(ort, 1), providers=["CPUExecutionProvider"])
    assert (session.run(None, {"a": rows})[0] == 64 * 127 * 255).all()
