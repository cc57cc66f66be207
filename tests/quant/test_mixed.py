"""Bits per layer: exact accounting, and how near to the optimum the greedy allocation comes."""

from itertools import product

import numpy as np
import pytest
import torch

from dlm_edge.errors import UsageProblem
from dlm_edge.packed_storage import to_parts
from dlm_edge.quant import mixed, rtn
from dlm_edge.quant.mixed import Candidate, allocate, probe_linear, zero_at
from dlm_edge.quant.statistics import InputStatistics, output_error
from dlm_edge.quantized import dequantize
from tests.packed_folder import random_tensor

WIDTHS = (2, 3, 4, 8)


def random_layers(seed: int, count: int = 5, zero: str = "symmetric") -> list[Candidate]:
    """Errors fall by about four per bit, from starts that differ a hundredfold, over weights of several sizes."""
    rng, layers = np.random.default_rng(seed), []
    for n in range(count):
        errors, error = {}, float(10 ** rng.uniform(-3, -1))
        for bits in WIDTHS:
            errors[bits] = error
            error /= float(rng.uniform(2, 6)) if bits != 4 else 50.0
        shape = [(256, 256), (64, 256), (512, 256), (256, 768)][int(rng.integers(4))]
        layers.append(Candidate(name=f"layer{n}", shape=shape, group_size=32, zero=zero, errors=errors))
    return layers


def stored(layers, chosen):
    return sum(layer.stored_bits(chosen[layer.name]) for layer in layers)


def cost(layers, chosen):
    return sum(layer.errors[chosen[layer.name]] for layer in layers)


def mean_bits(layers, chosen):
    return stored(layers, chosen) / sum(layer.n_weights for layer in layers)


def optimum(layers, budget):
    """Every combination there is."""
    limit = budget * sum(layer.n_weights for layer in layers)
    names = [layer.name for layer in layers]
    every = (dict(zip(names, bits, strict=True)) for bits in product(WIDTHS, repeat=len(layers)))
    return min(cost(layers, chosen) for chosen in every if stored(layers, chosen) <= limit)


@pytest.mark.parametrize("budget", [2.5, 2.6, 3.0, 3.5, 4.5, 6.0, 8.5])
@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
@pytest.mark.parametrize("seed", range(5))
def test_the_least_error_within_the_budget(seed, zero, budget):
    layers = random_layers(seed, zero=zero)
    narrowest = mean_bits(layers, dict.fromkeys([layer.name for layer in layers], 2))
    budget = max(budget, narrowest)
    chosen = allocate(layers, budget)
    assert mean_bits(layers, chosen) <= budget
    assert cost(layers, chosen) == pytest.approx(optimum(layers, budget), rel=1e-12)


def test_rounded_sizes_stay_within_the_budget(monkeypatch):
    """A table too small for the true sizes: still never above, and little worse."""
    monkeypatch.setattr(mixed, "LARGEST_TABLE", 300)
    for seed in range(5):
        layers = random_layers(seed)
        chosen = allocate(layers, 3.3)
        assert mean_bits(layers, chosen) <= 3.3
        assert cost(layers, chosen) <= optimum(layers, 3.25)


def test_a_large_model_is_allocated_from_a_small_table():
    """224 linears of three shapes."""
    shapes = [(4096, 4096)] * 4 + [(12288, 4096)] * 2 + [(4096, 12288)]
    rng, layers = np.random.default_rng(0), []
    for n in range(224):
        start = float(10 ** rng.uniform(-3, -1))
        errors = {bits: start * 4.0**-bits for bits in WIDTHS}
        layers.append(Candidate(name=str(n), shape=shapes[n % 7], group_size=64, zero="symmetric", errors=errors))
    chosen = allocate(layers, 3.25)
    assert 3.24 < mean_bits(layers, chosen) <= 3.25
    assert cost(layers, chosen) < cost(layers, dict.fromkeys(chosen, 3))


@pytest.mark.parametrize("seed", range(10))
def test_layers_of_one_size_are_served_by_their_errors(seed):
    rng = np.random.default_rng(seed)
    layers = [
        Candidate(name=str(n), shape=(64, 64), group_size=32, zero="symmetric", errors={3: float(rng.random()), 4: 0.0})
        for n in range(8)
    ]
    chosen = allocate(layers, 4.0)  # 3.5 with its scales: half of the layers get one more
    ranked = sorted(layers, key=lambda layer: -layer.errors[3])
    assert {name for name, bits in chosen.items() if bits == 4} == {layer.name for layer in ranked[:4]}


def test_more_budget_is_never_worse_and_all_of_it_gives_the_widest():
    layers = random_layers(3)
    costs = [cost(layers, allocate(layers, budget)) for budget in (2.5, 3, 4, 5, 6, 8.5)]
    assert costs == sorted(costs, reverse=True)
    assert set(allocate(layers, 8.5).values()) == {8}


def test_more_bits_than_help_are_not_spent():
    flat = Candidate(name="a", shape=(64, 64), group_size=32, zero="symmetric", errors=dict.fromkeys(WIDTHS, 0.1))
    assert allocate([flat], 8.5) == {"a": 2}


def test_the_same_layers_in_the_same_order_get_the_same_bits():
    same = {2: 0.1, 3: 0.05, 4: 0.02, 8: 0.0}
    layers = [Candidate(name=n, shape=(64, 64), group_size=32, zero="symmetric", errors=same) for n in "abcd"]
    chosen = allocate(layers, 3.0)
    assert chosen == allocate(layers, 3.0)
    assert sorted(chosen.values()) == [2, 2, 3, 3]  # an error of 0.30; four bits for one of them would leave 0.32


def test_a_budget_below_the_narrowest_form_is_refused():
    with pytest.raises(UsageProblem, match=r"2\.2 bits per weight are asked for, the narrowest form takes 2\.500"):
        allocate(random_layers(0), 2.2)


@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", [(3, 96), (5, 160), (7, 288)])
def test_stored_bits_are_those_of_the_file(shape, bits, zero):
    candidate = Candidate(name="w", shape=shape, group_size=32, zero=zero, errors={})
    parts = to_parts(random_tensor(shape, bits, 32, zero_at(bits, zero)))
    assert candidate.stored_bits(bits) == 8 * sum(part.nbytes for part in parts.values())


def statistics(columns: int = 64, tokens: int = 200) -> InputStatistics:
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 4, columns)
    inputs = InputStatistics("x", columns)
    inputs.add(x, torch.ones(tokens))
    return inputs


@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
def test_a_probe_is_the_error_of_rounding_to_nearest(zero):
    weight = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
    inputs = statistics()
    errors = probe_linear("w", weight, inputs, 32, zero)
    assert list(errors) == list(WIDTHS) and sorted(errors.values(), reverse=True) == list(errors.values())
    for bits, error in errors.items():
        config = rtn.RtnConfig(bits=bits, group_size=32, zero=zero_at(bits, zero), search=None)
        rounded = dequantize(rtn.quantize("w", weight, config))
        whole = output_error(inputs.hessian(), torch.from_numpy(weight), torch.from_numpy(rounded))
        assert error == pytest.approx(whole, rel=1e-9)


def test_some_rows_of_a_tall_weight_stand_for_all():
    weight = np.random.default_rng(0).standard_normal((16 * mixed.PROBE_ROWS, 64)).astype(np.float32)
    inputs = statistics()
    some = probe_linear("w", weight, inputs, 32, "symmetric")
    rounded = dequantize(rtn.quantize("w", weight, rtn.RtnConfig(bits=2, group_size=32, search=None)))
    whole = output_error(inputs.hessian(), torch.from_numpy(weight), torch.from_numpy(rounded))
    assert some[2] == pytest.approx(whole, rel=0.1)
