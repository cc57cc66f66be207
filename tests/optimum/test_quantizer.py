"""optimum's quantizer interface gives what `dlm_edge.quantize` gives."""

from __future__ import annotations

import pytest

pytest.importorskip("optimum.quantization_base", reason="needs the extra dlm-edge[optimum]")
pytest.importorskip("optimum.exporters.tasks", reason="needs the extra dlm-edge[optimum]")

from optimum.quantization_base import OptimumQuantizer  # noqa: E402

from dlm_edge.errors import InputFileError, UsageProblem  # noqa: E402
from dlm_edge.optimum import DlmEdgeQuantizer  # noqa: E402
from dlm_edge.quant import quantize  # noqa: E402
from tests.tiny import make_checkpoint  # noqa: E402

OPTIONS = {"method": "rtn", "bits": 4, "group_size": 32, "skip": ["*.0.*"]}


def test_the_same_files_as_the_library_writes(tmp_path):
    source = make_checkpoint(tmp_path / "source", "sdar")
    quantizer = DlmEdgeQuantizer.from_pretrained(source)
    assert isinstance(quantizer, OptimumQuantizer)
    report = quantizer.quantize(tmp_path / "a", **OPTIONS)
    quantize(source, tmp_path / "b", **OPTIONS)
    assert report.output == str(tmp_path / "a") and report.method == "rtn"
    for weights in (tmp_path / "b").glob("*.safetensors"):
        assert (tmp_path / "a" / weights.name).read_bytes() == weights.read_bytes()


def test_errors_are_those_of_the_library(tmp_path):
    with pytest.raises(InputFileError):
        DlmEdgeQuantizer.from_pretrained(tmp_path)
    quantizer = DlmEdgeQuantizer.from_pretrained(make_checkpoint(tmp_path / "source", "dream"))
    with pytest.raises(TypeError, match="bit_width"):
        quantizer.quantize(tmp_path / "out", bit_width=4)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_honoured_is_refused(tmp_path):
    source = make_checkpoint(tmp_path / "source", "dream")
    with pytest.raises(UsageProblem, match="file_name"):
        DlmEdgeQuantizer.from_pretrained(source, file_name="model.safetensors")
    with pytest.raises(UsageProblem, match="file_prefix"):
        DlmEdgeQuantizer(source).quantize(tmp_path / "out", file_prefix="int4")
