"""Int8 activations in torch against the integer product in NumPy, and where they are applied."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.models import load_model
from dlm_edge.models.int8_linear import Int8ActivationLinear, round_to_int8
from dlm_edge.models.streamed import streamed_logits
from dlm_edge.packed_storage import to_parts
from dlm_edge.quantized import RECORD_NAME, LayerRecord, OutlierColumns, QuantizationRecord, dequantize, pack
from tests.tiny import make_checkpoint

# float32 sums of 96 products; the largest relative error measured over 50 seeds is 4e-7
RELATIVE = 2e-6


def inputs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((5, 7, 96)).astype(np.float32) * rng.uniform(0.01, 30, (5, 7, 1)).astype(np.float32)
    return x, rng.standard_normal((11, 96)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_unsigned_integer_product(seed: int) -> None:
    x, weight = inputs(seed)
    peak = np.abs(x).max(-1, keepdims=True)
    scale = np.where(peak > 0, peak / np.float32(127), np.float32(1))
    stored = (np.clip(np.rint(x / scale), -127, 127) + 128).astype(np.uint8)
    want = (stored.astype(np.int64) - 128).astype(np.float64) * scale @ weight.astype(np.float64).T
    got = Int8ActivationLinear(torch.from_numpy(weight), None)(torch.from_numpy(x)).numpy()
    assert np.abs(got - want).max() <= RELATIVE * np.abs(want).max()


def test_rounding_stays_within_half_a_step_and_keeps_the_peak() -> None:
    x = torch.from_numpy(inputs()[0])
    rounded, peak = round_to_int8(x), x.abs().amax(-1, keepdim=True)
    assert ((rounded - x).abs() <= 0.5 * peak / 127 * (1 + 1e-5)).all()  # 1e-5: float32 rounding of the products
    torch.testing.assert_close(rounded.abs().amax(-1, keepdim=True), peak, rtol=1e-6, atol=0)


def test_a_token_of_zeros_stays_zero_and_does_not_disturb_others() -> None:
    x = torch.from_numpy(inputs()[0])
    zeroed = x.clone()
    zeroed[2, 3] = 0
    rounded = round_to_int8(zeroed)
    assert (rounded[2, 3] == 0).all()
    assert torch.equal(rounded[0], round_to_int8(x)[0])


def test_outlier_columns_are_exact_and_leave_the_scale_alone() -> None:
    x, weight = inputs()
    x[..., [4, 90]] *= 1000
    layer = Int8ActivationLinear(torch.from_numpy(weight), torch.ones(11), [4, 90])
    ordinary = np.delete(x, [4, 90], -1)
    want = round_to_int8(torch.from_numpy(ordinary)) @ torch.from_numpy(np.delete(weight, [4, 90], 1)).T
    want = want + torch.from_numpy(x[..., [4, 90]] @ weight[:, [4, 90]].T) + 1
    got = layer(torch.from_numpy(x))
    assert (got - want).abs().max() <= RELATIVE * want.abs().max()
    plain = Int8ActivationLinear(torch.from_numpy(weight), torch.ones(11))(torch.from_numpy(x))
    exact = torch.from_numpy(x) @ torch.from_numpy(weight).T + 1
    assert (plain - exact).abs().mean() > 20 * (got - exact).abs().mean()


def packed_checkpoint(folder: Path, activations: str, outliers: int) -> Path:
    """An SDAR checkpoint whose `layers.0.down` is packed in 8 bits and recorded with these activations."""
    from safetensors.numpy import load_file, save_file

    folder = make_checkpoint(folder, "sdar", dtype="float32")
    source = open_checkpoint(folder)
    name, weight = source.tensor_name("layers.0.down.weight"), source.load("layers.0.down.weight")
    columns = np.arange(outliers) * 3
    kept = OutlierColumns(columns, weight[:, columns].astype(np.float16).astype(np.float32)) if outliers else None
    rest = weight.copy()
    rest[:, columns] = 0
    scales = (np.abs(rest).max(1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    codes = (np.rint(rest / scales).clip(-127, 127) + 128).astype(np.uint8)
    tensor = pack(codes, scales, 8, outliers=kept)
    assert np.abs(dequantize(tensor) - weight).max() < np.abs(weight).max() / 100
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    tensors |= {name + suffix: part for suffix, part in to_parts(tensor).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    layer = LayerRecord(name=name, bits=8, group_size=weight.shape[1], method="test", activations=activations)  # type: ignore[arg-type]
    layer.outlier_columns = outliers
    record = QuantizationRecord(
        method="test",
        bits=8,
        group_size=weight.shape[1],
        seed=0,
        calibration={},
        source={},
        tool_version="",
        layers=[layer],
    )
    import msgspec

    (folder / RECORD_NAME).write_text(json.dumps(msgspec.to_builtins(record)))
    return folder


@pytest.mark.parametrize("outliers", [0, 5])
def test_a_checkpoint_rounds_where_its_record_says_so(tmp_path: Path, outliers: int) -> None:
    rounded = load_model(packed_checkpoint(tmp_path / "int8", "int8", outliers))
    plain = load_model(packed_checkpoint(tmp_path / "float", "float", outliers))
    changed = [n for n, m in rounded.named_modules() if isinstance(m, Int8ActivationLinear)]
    assert changed == ["layers.0.down"]
    assert not any(isinstance(m, Int8ActivationLinear) for m in plain.modules())
    down = rounded.layers[0].down
    assert (0 if down.is_outlier is None else int(down.is_outlier.sum())) == outliers
    ids = torch.arange(24)[None]
    with torch.no_grad():
        assert 0 < (rounded(ids) - plain(ids)).abs().max() < 0.2 * plain(ids).abs().max()


def test_streamed_logits_round_like_the_loaded_model(tmp_path: Path) -> None:
    folder = packed_checkpoint(tmp_path, "int8", 5)
    ids = np.arange(24)
    with torch.no_grad():
        want = load_model(folder)(torch.from_numpy(ids)[None])[0].numpy()
    got = streamed_logits(open_checkpoint(folder), [ids])[0]
    # one code of a token may fall to the other side of a half where the sums round differently
    assert np.abs(got - want[:, : got.shape[1]]).max() <= 1e-3 * np.abs(want).max()
