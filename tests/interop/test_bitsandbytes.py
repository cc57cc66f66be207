"""We read what bitsandbytes writes, and our two tables are its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.quantized import CODEBOOKS, CodebookTensor, dequantize
from tests.foreign import make_foreign, random_codebook

package = pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes (0.50 was tested)", exc_type=ImportError)
from bitsandbytes import functional  # noqa: E402

# Its decoder on the CPU is wrong where rows do not consist of whole blocks (0.50.2: 32, 96, 160 columns); what it stores
# is right there too, and is compared with the definition instead.


def quantized(shape: tuple[int, int], format: str, nested: bool, seed: int = 0) -> tuple[torch.Tensor, Any]:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    packed, state = functional.quantize_4bit(values, blocksize=64, quant_type=format, compress_statistics=nested)
    return packed, state


def tensors_of(name: str, packed: torch.Tensor, state: Any) -> dict[str, np.ndarray]:
    parts = {f"{name}.{part}": tensor.numpy() for part, tensor in state.as_dict(packed=True).items()}
    return {name: packed.numpy()} | parts


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("format", ["nf4", "fp4"])
@pytest.mark.parametrize("family", ["llada", "sdar"])
def test_we_read_what_it_writes(tmp_path: Path, family: str, format: str, nested: bool) -> None:
    expected: dict[str, np.ndarray] = {}

    def write(name: str, weight: Any) -> dict[str, np.ndarray]:
        packed, state = quantized(weight.shape, format, nested, seed=len(expected))
        expected[name] = functional.dequantize_4bit(packed, state).numpy()
        return tensors_of(name, packed, state)

    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": format}
    config |= {"bnb_4bit_use_double_quant": nested, "bnb_4bit_compute_dtype": "float32"}
    make_foreign(tmp_path, family, write, config, lambda shape, i: random_codebook(shape, format, i))
    checkpoint = open_checkpoint(tmp_path)
    roles = [role for role in checkpoint.roles() if checkpoint.layer_record(role)]
    assert len(roles) == len(expected) == 14
    for role in roles:
        found, wanted = checkpoint.load(role), expected[checkpoint.tensor_name(role)]
        # Its kernel rounds the nested magnitudes in another order: the last bit of float32.
        np.testing.assert_allclose(found, wanted, rtol=3e-7 if nested else 0, atol=0)


@pytest.mark.parametrize("columns", [32, 96, 160])
@pytest.mark.parametrize("format", ["nf4", "fp4"])
def test_blocks_run_on_over_rows(tmp_path: Path, format: str, columns: int) -> None:
    from dlm_edge.checkpoint.foreign import find_layers
    from dlm_edge.checkpoint.formats import READERS
    from dlm_edge.checkpoint.safetensors_header import read_header
    from dlm_edge.families.settings import Settings

    shape = (10, columns)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(values, blocksize=64, quant_type=format)
    from safetensors.numpy import save_file

    save_file(tensors_of("x.weight", packed, state), tmp_path / "w.safetensors")
    reader = READERS["bitsandbytes"]
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": format}
    variants = reader.read_config(Settings(config, "tiny"))
    layer = find_layers(reader, variants, read_header(tmp_path / "w.safetensors"), {"x.weight": shape}, tmp_path)
    found = layer["x.weight"].rows(0, 10)
    wide = np.diff(np.sort(CODEBOOKS[format])).max()  # nothing is further from a value than half a gap of its block
    magnitudes = state.absmax.numpy().repeat(64)[: values.numel()].reshape(shape)
    assert (np.abs(found - values.numpy()) <= magnitudes * wide / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("format", ["nf4", "fp4"])
def test_the_tables_are_the_same(format: Any) -> None:
    _, state = quantized((8, 64), format, False)
    np.testing.assert_array_equal(state.code.numpy(), CODEBOOKS[format])


@pytest.mark.parametrize("format", ["nf4", "fp4"])
def test_it_decodes_our_codes_alike(format: Any) -> None:
    weight = random_codebook((16, 128), format)
    state = functional.QuantState(
        absmax=torch.from_numpy(weight.magnitudes),
        shape=torch.Size(weight.shape),
        code=torch.from_numpy(CODEBOOKS[format]),
        blocksize=64,
        quant_type=format,
        dtype=torch.float32,
    )
    found = functional.dequantize_4bit(torch.from_numpy(weight.packed.reshape(-1, 1)), state).numpy()
    assert isinstance(weight, CodebookTensor)
    np.testing.assert_array_equal(found, dequantize(weight))
