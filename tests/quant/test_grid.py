import pytest
import torch

from dlm_edge.errors import UsageProblem
from dlm_edge.quant.grid import (
    SMALLEST_HALF_SCALE,
    Search,
    check_grid,
    choose_scales,
    code_range,
    encode,
    grid_error,
    range_scales,
    round_scales,
)

BITS = [2, 3, 4, 8]


def random_groups(rows: int = 16, n_groups: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(rows, n_groups, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", BITS)
def test_the_range_scale_is_the_smallest_that_keeps_half_a_step(bits):
    groups = random_groups()
    scales = range_scales(groups, bits)

    def worst(factor: float) -> torch.Tensor:
        s = scales * factor
        return ((groups - encode(groups, s, bits) * s[..., None]).abs().amax(-1) / s.abs()) - 0.5

    assert (worst(1 + 1e-5) <= 1e-4).all()
    assert (worst(0.99) > 0).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_longer_side_gets_the_extra_code(bits, sign):
    lowest, highest = code_range(bits)
    groups = sign * torch.tensor([[[lowest, highest] + [0] * 14]], dtype=torch.float32) * 0.01
    scales = choose_scales(groups, bits, Search())
    codes = encode(groups, scales, bits)
    assert codes.min() == lowest and codes.max() == highest
    assert torch.sign(scales).item() == sign


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_search_is_never_worse_than_the_range(bits, weighted):
    groups = random_groups()
    importance = torch.rand(3, 32, generator=torch.Generator().manual_seed(1)) if weighted else None
    plain, searched = choose_scales(groups, bits, None), choose_scales(groups, bits, Search(), importance)
    before = grid_error(groups, plain, bits, 2.0, importance)
    after = grid_error(groups, searched, bits, 2.0, importance)
    assert (after <= before).all()
    assert bits == 8 or (after < before).any()  # at 8 bits clipping never pays for Gaussian values


def test_scales_are_float16_values_rounded_outwards():
    scales = torch.tensor([[0.1, -0.1, 1.0, 1 / 3]])
    rounded = round_scales(scales)
    assert (rounded.half().float() == rounded).all()
    assert (rounded.abs() >= scales.abs()).all()
    assert ((rounded - scales).abs() <= scales.abs() * 2**-10).all()
    assert rounded[0, 2] == 1


@pytest.mark.parametrize("extreme", [SMALLEST_HALF_SCALE / 2, 1e-7, 1e-20, 1e5])
def test_scales_that_float16_cannot_hold_stay_in_float32(extreme):
    scales = torch.tensor([[0.1, extreme]])
    assert (round_scales(scales) == scales).all()


def test_zero_groups_have_scale_one_and_code_zero():
    groups = torch.zeros(2, 3, 16)
    groups[0, 0] = 1.0
    scales = choose_scales(groups, 4, Search())
    assert (scales.flatten()[1:] == 1).all()
    assert (encode(groups, scales, 4)[1] == 0).all()


@pytest.mark.parametrize(("bits", "group_size"), [(1, 64), (5, 64), (4, 8), (4, 48), (4, 512)])
def test_settings_out_of_range_are_refused(bits, group_size):
    with pytest.raises(UsageProblem) as caught:
        check_grid(bits, group_size)
    assert caught.value.code == "E-QUANT"
