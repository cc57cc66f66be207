import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from dlm_edge.errors import UsageProblem
from dlm_edge.models.transformer import Layer
from dlm_edge.quant import rtn
from dlm_edge.quant.layer_pass import LINEARS, advance
from dlm_edge.quant.states import Batch, Row, StateConfig, make_states
from dlm_edge.quant.tuning import TunedLayer, TuningConfig, tune_layer
from dlm_edge.quantized import OutlierColumns, QuantizedTensor, dequantize, unpack
from tests.tiny import FAMILY_NAMES, make_spec

CONFIG = TuningConfig(steps=24, step_tokens=128, learning_rate=5e-3)


@dataclass
class Case:
    spec: object
    full: Layer
    layer: Layer
    tensors: dict[str, QuantizedTensor]
    batches: list[Batch]
    hidden: list[torch.Tensor]
    hidden_full: list[torch.Tensor]

    def tune(self, config: TuningConfig = CONFIG) -> TunedLayer:
        given = (self.layer, self.full, self.tensors, self.spec, self.batches, self.hidden, self.hidden_full)
        return tune_layer(*given, config)

    def error(self) -> float:
        """Weighted, over all states, by the operations of the pipeline."""
        found, wanted = [h.clone() for h in self.hidden], [h.clone() for h in self.hidden_full]
        with torch.no_grad():
            advance(self.layer, self.spec, self.batches, found)
            advance(self.full, self.spec, self.batches, wanted)
        pairs = zip(found, wanted, self.batches, strict=True)
        return float(sum(((f - w).square().mean(-1) * b.weights).sum() for f, w, b in pairs))


def put(layer: Layer, tensors: dict[str, QuantizedTensor]) -> None:
    for linear, tensor in tensors.items():
        getattr(layer, linear).weight.data.copy_(torch.from_numpy(dequantize(tensor)))


def make_case(family: str = "sdar", bits: int = 3, zero: str = "float") -> Case:
    spec, generator = make_spec(family), torch.Generator().manual_seed(0)
    full = Layer(spec).requires_grad_(False)
    for parameter in full.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.1 if parameter.dim() > 1 else 0.3))
    for name, parameter in full.named_parameters():
        if "norm" in name:
            parameter.add_(1)
    rng = np.random.default_rng(0)
    rows = [Row(tuple(rng.integers(0, 256, 32).tolist()), 0, 32) for _ in range(12)]
    batches = make_states(rows, spec.conventions, StateConfig(), 0)
    hidden_full = [torch.randn(*b.ids.shape, spec.hidden_size, generator=generator) for b in batches]
    hidden = [h + 0.05 * torch.randn(h.shape, generator=generator) for h in hidden_full]
    config = rtn.RtnConfig(bits=bits, group_size=32, zero=zero)
    layer = copy.deepcopy(full)
    tensors = {n: rtn.quantize(n, getattr(full, n).weight.numpy(), config) for n in LINEARS}
    put(layer, tensors)
    return Case(spec, full, layer, tensors, batches, hidden, hidden_full)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
def test_the_layer_comes_nearer_to_full_precision(family, zero):
    case = make_case(family, zero=zero)
    before = case.error()
    tuned = case.tune()
    assert tuned.loss_after < 0.95 * tuned.loss_before and tuned.notes == []
    assert case.error() / before == pytest.approx(tuned.loss_after / tuned.loss_before, rel=1e-3)


def test_the_layer_holds_what_the_tensors_and_the_float16_norms_say():
    case = make_case()
    tuned = case.tune()
    for linear, tensor in tuned.tensors.items():
        assert torch.equal(getattr(case.layer, linear).weight, torch.from_numpy(dequantize(tensor)))
        assert (unpack(tensor) == unpack(case.tensors[linear])).all()
        for values in (tensor.scales, tensor.zeros):
            assert (values.astype(np.float16).astype(np.float32) == values).all()
    gains = [p for n, p in case.layer.named_parameters() if "norm" in n]
    assert len(gains) == 4 and all((g.half().float() == g).all() for g in gains)
    assert all(not torch.equal(g, f) for g, f in zip(gains, gains_of(case.full), strict=True))


def gains_of(layer: Layer) -> list[torch.Tensor]:
    return [p for n, p in layer.named_parameters() if "norm" in n]


@pytest.mark.parametrize("off", ["scales", "zeros", "norms"])
def test_what_is_switched_off_stays(off):
    case = make_case()
    tuned = case.tune(replace(CONFIG, **{off: False}))
    assert tuned.loss_after < tuned.loss_before
    same = {
        "scales": all((t.scales == case.tensors[n].scales).all() for n, t in tuned.tensors.items()),
        "zeros": all((t.zeros == case.tensors[n].zeros).all() for n, t in tuned.tensors.items()),
        "norms": all(torch.equal(a, b) for a, b in zip(gains_of(case.layer), gains_of(case.full), strict=True)),
    }
    assert same == {name: name == off for name in same}


def test_tuning_that_makes_it_worse_is_undone():
    case = make_case()
    weights = {n: p.clone() for n, p in case.layer.named_parameters()}
    tuned = case.tune(replace(CONFIG, learning_rate=5.0))
    assert tuned.loss_after == tuned.loss_before and tuned.tensors is case.tensors
    assert "left as it was" in tuned.notes[0]
    assert all(torch.equal(p, weights[n]) for n, p in case.layer.named_parameters())


def test_linears_that_stay_in_float_are_not_touched():
    case = make_case()
    case.tensors = {n: t for n, t in case.tensors.items() if n in ("q", "down")}
    before = case.layer.up.weight.clone()
    assert set(case.tune().tensors) == {"q", "down"}
    assert torch.equal(case.layer.up.weight, before)


def test_reordered_columns_and_outliers_keep_their_places():
    case = make_case(bits=4)
    weight, order = case.full.down.weight.numpy(), np.random.default_rng(1).permutation(128)
    columns = np.array([3, 77])
    without = weight.copy()
    without[:, columns] = 0
    packed = rtn.quantize("down", np.ascontiguousarray(without[:, order]), rtn.RtnConfig(bits=4, group_size=32))
    outliers = OutlierColumns(columns, weight[:, columns].astype(np.float16).astype(np.float32))
    case.tensors["down"] = replace(packed, order=order, outliers=outliers)
    put(case.layer, case.tensors)
    tuned = case.tune()
    assert tuned.loss_after < tuned.loss_before
    assert (tuned.tensors["down"].order == order).all() and tuned.tensors["down"].outliers is outliers


def test_it_is_the_same_every_time_and_in_inference_mode():
    first = make_case().tune()
    case = make_case()
    with torch.inference_mode():
        case.hidden = [h.clone() for h in case.hidden]
        case.layer = copy.deepcopy(case.layer)
        second = case.tune()
    assert first.loss_after == second.loss_after
    assert all((t.scales == second.tensors[n].scales).all() for n, t in first.tensors.items())


@pytest.mark.parametrize("settings", [{"steps": 0}, {"step_tokens": 0}, {"learning_rate": 0.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UsageProblem) as caught:
        TuningConfig(**settings)
    assert caught.value.code == "E-QUANT"
