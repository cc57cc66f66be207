"""nf4 and fp4: our tables and byte layout are those of bitsandbytes, which makes the codes."""

import sys

import numpy as np
import pytest
import torch

from dlm_edge.errors import EnvironmentProblem, UsageProblem
from dlm_edge.quant import codebook
from dlm_edge.quantized import CODEBOOKS, CodebookTensor, dequantize

FORMATS = ["nf4", "fp4"]


def random_weight(rows: int = 12, columns: int = 192) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


@pytest.fixture
def functional():
    return pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes")


@pytest.mark.parametrize("form", FORMATS)
def test_the_tables_are_those_of_bitsandbytes(functional, form):
    theirs = functional.get_4bit_type(form, device="cpu", blocksize=64).numpy()
    np.testing.assert_array_equal(theirs, CODEBOOKS[form])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", [(1, 64), (12, 192), (7, 320)])
def test_bitsandbytes_reads_what_we_store(functional, form, shape):
    tensor = codebook.quantize("w", random_weight(*shape), codebook.CodebookConfig(format=form)).tensor
    assert isinstance(tensor, CodebookTensor) and tensor.shape == shape and tensor.format == form
    state = functional.QuantState(
        absmax=torch.from_numpy(tensor.magnitudes),
        shape=torch.Size(shape),
        code=torch.from_numpy(CODEBOOKS[form]),
        blocksize=64,
        quant_type=form,
        dtype=torch.float32,
    )
    theirs = functional.dequantize_4bit(torch.from_numpy(tensor.packed)[:, None], state)
    np.testing.assert_array_equal(theirs.numpy(), dequantize(tensor))


@pytest.mark.parametrize("form", FORMATS)
def test_every_byte_means_the_same(functional, form):
    tensor = CodebookTensor(np.arange(256, dtype=np.uint8), np.arange(1, 9, dtype=np.float32), (8, 64), form)
    state = functional.QuantState(
        absmax=torch.from_numpy(tensor.magnitudes),
        shape=torch.Size((8, 64)),
        code=torch.from_numpy(CODEBOOKS[form]),
        blocksize=64,
        quant_type=form,
        dtype=torch.float32,
    )
    theirs = functional.dequantize_4bit(torch.arange(256, dtype=torch.uint8)[:, None], state)
    np.testing.assert_array_equal(theirs.numpy(), dequantize(tensor))


@pytest.mark.parametrize("form", FORMATS)
def test_every_code_is_the_nearest(functional, form):
    weight = random_weight()
    weight[3, :64] = 0
    tensor = codebook.quantize("w", weight, codebook.CodebookConfig(format=form)).tensor
    magnitudes = np.abs(weight.reshape(-1, 64)).max(1)
    np.testing.assert_array_equal(tensor.magnitudes, magnitudes)
    grid = (CODEBOOKS[form][None] * magnitudes[:, None])[:, None, :]
    nearest = np.abs(weight.reshape(-1, 64, 1) - grid).min(-1).reshape(weight.shape)
    error = np.abs(dequantize(tensor) - weight)
    # bitsandbytes compares with midpoints of few digits, so a value between two codes may go to either
    assert (error <= nearest + 2e-3 * magnitudes.max()).all()
    assert (dequantize(tensor)[3, :64] == 0).all()


def test_without_bitsandbytes_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(EnvironmentProblem) as caught:
        codebook.quantize("w", random_weight(), codebook.CodebookConfig())
    assert caught.value.code == "E-DEPENDENCY" and caught.value.hint == "pip install bitsandbytes"


def test_a_layer_that_does_not_fit_is_named():
    with pytest.raises(UsageProblem, match="model.x: in_features 96 is not a multiple of 64") as caught:
        codebook.quantize("model.x", random_weight(4, 96), codebook.CodebookConfig())
    assert caught.value.code == "E-QUANT" and "--skip 'model.x'" in caught.value.hint


@pytest.mark.parametrize("options", [{"bits": 3}, {"group_size": 32}, {"zero": "float"}])
def test_there_is_no_other_form(options):
    with pytest.raises(UsageProblem, match="nf4 has 4 bits in groups of 64"):
        codebook.CodebookConfig(**options)
