"""The package compressed-tensors and we read each other's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.conversion import convert
from dlm_edge.quantized import QuantizedTensor, dequantize, pack
from tests.foreign import WEIGHTS, linear_roles, make_foreign, random_weight
from tests.packed_folder import pack_folder
from tests.tiny import make_checkpoint

package = pytest.importorskip(
    "compressed_tensors", reason="pip install compressed-tensors (0.20 was tested)", exc_type=ImportError
)
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor as Compressor  # noqa: E402
from compressed_tensors.quantization import (  # noqa: E402
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
)
from safetensors.torch import load_file  # noqa: E402

SETTINGS = [(bits, symmetric, group) for bits in (2, 3, 4, 8) for symmetric in (True, False) for group in (8, 32, None)]


def scheme_of(bits: int, symmetric: bool, group_size: int | None) -> Any:
    args = QuantizationArgs(
        num_bits=bits,
        symmetric=symmetric,
        strategy="channel" if group_size is None else "group",
        group_size=group_size,
    )
    return QuantizationScheme(targets=["Linear"], weights=args, format="pack-quantized")


def compressed(name: str, weight: QuantizedTensor, scheme: Any) -> dict[str, np.ndarray]:
    """The package packs what our codes are worth; every value lies on the grid, so it finds the same codes."""
    state = {"weight": torch.from_numpy(dequantize(weight)), "weight_scale": torch.from_numpy(weight.scales)}
    zeros = np.full(weight.scales.shape, 2 ** (weight.bits - 1)) if weight.zeros is None else weight.zeros
    signed = zeros.astype(np.int16) - 2 ** (weight.bits - 1)
    state["weight_zero_point"] = torch.from_numpy(signed.astype(np.int8))
    found = Compressor.compress(state, scheme)
    return {f"{name.removesuffix('weight')}{part}": tensor.numpy() for part, tensor in found.items()}


@pytest.mark.parametrize(("bits", "symmetric", "group_size"), SETTINGS)
def test_we_read_what_it_writes(tmp_path: Path, bits: int, symmetric: bool, group_size: int | None) -> None:
    scheme = scheme_of(bits, symmetric, group_size)
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        format="pack-quantized",
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=["lm_head"],
    ).model_dump(mode="json")

    def weights(shape: tuple[int, int], i: int) -> QuantizedTensor:
        return random_weight(shape, bits, group_size or shape[1], symmetric=symmetric, seed=i)

    worth = make_foreign(tmp_path, "sdar", lambda n, w: compressed(n, w, scheme), config, weights)  # type: ignore[arg-type]
    checkpoint = open_checkpoint(tmp_path)
    for role, weight in worth.items():
        assert checkpoint.dtype(role) == f"int{bits}"
        np.testing.assert_array_equal(checkpoint.load(role), weight)


@pytest.mark.parametrize(("bits", "symmetric", "group_size"), SETTINGS)
def test_it_reads_what_we_write(tmp_path: Path, bits: int, symmetric: bool, group_size: int | None) -> None:
    make_checkpoint(tmp_path / "ours", "llada", n_layers=1)
    plain = open_checkpoint(tmp_path / "ours")
    weights: Any = {
        role: random_weight(plain.shape(role), bits, group_size or plain.shape(role)[1], symmetric=symmetric, seed=i)
        for i, role in enumerate(linear_roles(plain))
    }
    pack_folder(tmp_path / "ours", weights)
    convert(tmp_path / "ours", tmp_path / "theirs", format="compressed-tensors")
    theirs = open_checkpoint(tmp_path / "theirs")
    config = QuantizationConfig.model_validate(theirs.config["quantization_config"])
    assert list(config.config_groups) == ["group_0"] and config.quantization_status == "compressed"
    scheme, tensors = config.config_groups["group_0"], load_file(tmp_path / "theirs" / WEIGHTS)
    for role, weight in weights.items():
        stem = theirs.tensor_name(role).removesuffix("weight")
        state = {name.removeprefix(stem): t for name, t in tensors.items() if name.startswith(stem)}
        state["weight_scale"] = state["weight_scale"].float()  # the product is rounded to the type of the scales
        found = Compressor.decompress(state, scheme)["weight"].numpy()
        np.testing.assert_array_equal(found, dequantize(weight))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(1, 8), (5, 40), (33, 72), (40, 104)])
def test_odd_shapes(bits: int, shape: tuple[int, int]) -> None:
    """Rows and columns that do not fill their last word."""
    from dlm_edge.checkpoint.formats import WRITERS
    from tests.foreign import stored, to_write

    weight = random_weight(shape, bits, 8)
    layer, name = to_write("x.weight", weight), "x."
    ours = stored(WRITERS["compressed-tensors"].tensors(layer, weight))
    theirs = compressed("x.weight", weight, scheme_of(bits, False, 8))
    for part in ("weight_packed", "weight_zero_point", "weight_shape"):
        np.testing.assert_array_equal(ours[name + part], theirs[name + part])


def test_the_grid_is_the_same() -> None:
    """One literal: codes 0 ... 15 are -8 ... 7 there."""
    weight = pack(np.arange(16, dtype=np.uint8)[None], np.ones((1, 1), np.float32), 4)
    theirs = compressed("weight", weight, scheme_of(4, True, 16))
    assert theirs["weight_packed"].view(np.uint32).tolist() == [[0x76543210, 0xFEDCBA98]]
