"""GPTQModel's own modules pack, unpack and dequantize; GPTQ in both versions, and AWQ in its GEMM version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.conversion import convert
from dlm_edge.quantized import QuantizedTensor, dequantize
from tests.foreign import WEIGHTS, linear_roles, make_foreign, random_weight
from tests.packed_folder import pack_folder
from tests.tiny import make_checkpoint

package = pytest.importorskip(
    "gptqmodel", reason="pip install gptqmodel (7.7 was tested; it wants torch >= 2.14.1)", exc_type=ImportError
)
from gptqmodel.nn_modules.qlinear.torch import TorchLinear  # noqa: E402
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear  # noqa: E402
from gptqmodel.quantization import FORMAT, QuantizeConfig  # noqa: E402
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm  # noqa: E402
from gptqmodel.utils.model import (  # noqa: E402
    convert_gptq_v1_to_v2_format_module,
    convert_gptq_v2_to_v1_format_module,
)
from safetensors.torch import load_file  # noqa: E402

PARTS = ("qweight", "qzeros", "scales", "g_idx")


def module_for(weight: QuantizedTensor) -> Any:
    rows, columns = weight.shape
    return TorchLinear(
        bits=weight.bits,
        group_size=weight.group_size,
        sym=weight.zeros is None,
        desc_act=weight.order is not None,
        in_features=columns,
        out_features=rows,
        format=FORMAT.GPTQ_V2,
    )


def linear(weight: QuantizedTensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(dequantize(weight))
    return layer


def zeros_of(weight: QuantizedTensor) -> np.ndarray:
    return np.full(weight.scales.shape, 2 ** (weight.bits - 1), np.uint8) if weight.zeros is None else weight.zeros


def groups_of(weight: QuantizedTensor) -> np.ndarray:
    groups = np.arange(weight.shape[1]) // weight.group_size
    if weight.order is None:
        return groups
    natural = np.empty_like(groups)
    natural[weight.order] = groups
    return natural


def pack_there(name: str, weight: QuantizedTensor, version: str) -> dict[str, np.ndarray]:
    module = module_for(weight)
    scales, zeros = torch.from_numpy(weight.scales), torch.from_numpy(zeros_of(weight).astype(np.float32))
    groups = torch.from_numpy(groups_of(weight).astype(np.int32))
    module.pack_original(linear(weight), scales, zeros, groups)
    if version == "gptq":
        convert_gptq_v2_to_v1_format_module(module, QuantizeConfig(bits=weight.bits, group_size=weight.group_size))
    return {name.removesuffix("weight") + part: getattr(module, part).numpy() for part in PARTS}


def dequantize_there(tensors: dict[str, torch.Tensor], weight: QuantizedTensor, version: str) -> np.ndarray:
    module = module_for(weight)
    for part in PARTS:
        module.register_buffer(part, tensors[part])
    module.post_init()
    if version == "gptq":
        convert_gptq_v1_to_v2_format_module(module, weight.bits, torch.int32)
    found: np.ndarray = module.dequantize_weight().T.float().numpy()
    return found


CASES = [
    (version, bits, symmetric, reordered)
    for version in ("gptq", "gptq_v2")
    for bits in (2, 3, 4, 8)
    for symmetric in (True, False)
    for reordered in (False, True)
]


@pytest.mark.parametrize(("version", "bits", "symmetric", "reordered"), CASES)
def test_we_read_what_it_writes(tmp_path: Path, version: str, bits: int, symmetric: bool, reordered: bool) -> None:
    """Random zeros hold a 0 beside any other: in version 1 it borrows from its neighbour."""
    config = QuantizeConfig(bits=bits, group_size=32, sym=symmetric, desc_act=reordered).to_dict()
    config |= {"quant_method": "gptq", "method": "gptq", "format": version, "checkpoint_format": version}
    config["meta"] = {"quantizer": ["gptqmodel:7.7.0"]}

    def weights(shape: tuple[int, int], i: int) -> QuantizedTensor:
        return random_weight(shape, bits, 32, symmetric=symmetric, reordered=reordered, seed=i)

    worth = make_foreign(tmp_path, "sdar", lambda n, w: pack_there(n, w, version), config, weights)  # type: ignore[arg-type]
    checkpoint = open_checkpoint(tmp_path)
    for role, weight in worth.items():
        assert checkpoint.dtype(role) == f"int{bits}"
        np.testing.assert_array_equal(checkpoint.load(role), weight)


@pytest.mark.parametrize(("version", "bits", "symmetric", "reordered"), CASES)
def test_it_reads_what_we_write(tmp_path: Path, version: str, bits: int, symmetric: bool, reordered: bool) -> None:
    make_checkpoint(tmp_path / "ours", "llada", n_layers=1)
    plain = open_checkpoint(tmp_path / "ours")
    weights: Any = {
        role: without_zero(
            random_weight(plain.shape(role), bits, 32, symmetric=symmetric, reordered=reordered, seed=i), version
        )
        for i, role in enumerate(linear_roles(plain))
    }
    pack_folder(tmp_path / "ours", weights)
    convert(tmp_path / "ours", tmp_path / "theirs", format=version)
    theirs = open_checkpoint(tmp_path / "theirs")
    config = QuantizeConfig.from_quant_config(theirs.config["quantization_config"])
    assert (config.bits, config.group_size, config.sym, config.desc_act) == (bits, 32, symmetric, reordered)
    assert config.format == version
    tensors = load_file(tmp_path / "theirs" / WEIGHTS)
    for role, weight in weights.items():
        stem = theirs.tensor_name(role).removesuffix("weight")
        found = dequantize_there({part: tensors[stem + part] for part in PARTS}, weight, version)
        np.testing.assert_array_equal(found, dequantize(weight).astype(np.float16).astype(np.float32))


def without_zero(weight: QuantizedTensor, version: str) -> QuantizedTensor:
    """Version 1 is written without zeros of 0; `convert` refuses them."""
    if version == "gptq_v2" or weight.zeros is None:
        return weight
    zeros = np.maximum(weight.zeros, 1).astype(np.uint8)
    return QuantizedTensor(weight.packed, weight.scales, weight.bits, zeros, weight.order)


def test_awq_both_ways(tmp_path: Path) -> None:
    def module_of(weight: QuantizedTensor) -> Any:
        return AwqTorchLinear(
            bits=4, group_size=32, sym=False, desc_act=False, in_features=weight.shape[1], out_features=weight.shape[0]
        )

    def write(name: str, weight: Any) -> dict[str, np.ndarray]:
        module = module_of(weight)
        module.pack(linear(weight), torch.from_numpy(weight.scales), torch.from_numpy(zeros_of(weight).astype("f4")))
        return {name.removesuffix("weight") + part: getattr(module, part).numpy() for part in PARTS[:3]}

    config = QuantizeConfig(bits=4, group_size=32, quant_method="awq", format="gemm").to_dict()
    config = {key: str(getattr(value, "value", value)) if "method" in key or "format" in key else value
              for key, value in config.items()} | {"version": "gemm", "zero_point": True, "meta": {}}  # fmt: skip
    worth = make_foreign(tmp_path / "a", "sdar", write, config, lambda s, i: random_weight(s, 4, 32, seed=i))
    checkpoint = open_checkpoint(tmp_path / "a")
    for role, weight in worth.items():
        np.testing.assert_array_equal(checkpoint.load(role), weight)

    convert(tmp_path / "a", tmp_path / "b", format="compressed-tensors")
    convert(tmp_path / "b", tmp_path / "c", format="awq")
    tensors = load_file(tmp_path / "c" / WEIGHTS)
    for role, weight in worth.items():
        stem = checkpoint.tensor_name(role).removesuffix("weight")
        found = dequantize_gemm(
            tensors[stem + "qweight"], tensors[stem + "qzeros"], tensors[stem + "scales"], bits=4, group_size=32
        )
        np.testing.assert_array_equal(found.T.float().numpy(), weight.astype(np.float16).astype(np.float32))
