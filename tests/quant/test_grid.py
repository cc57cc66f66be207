import pytest
import torch

from dlm_edge.errors import UsageProblem
from dlm_edge.quant.grid import (
    SMALLEST_HALF_SCALE,
    Grid,
    Search,
    check_grid,
    choose_grid,
    pack_grid,
    range_grid,
    round_scales,
    round_zeros,
    symmetric_scales,
)
from dlm_edge.quantized import dequantize, middle_code, unpack

BITS = [2, 3, 4, 8]
KINDS = [(bits, zero) for bits in BITS for zero in ("symmetric", "integer", "float") if (bits, zero) != (8, "float")]


def random_groups(rows: int = 16, n_groups: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(rows, n_groups, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", BITS)
def test_the_symmetric_scale_is_the_smallest_that_keeps_half_a_step(bits):
    groups = random_groups()
    scales = symmetric_scales(groups, bits)

    def worst(factor: float) -> torch.Tensor:
        grid = Grid(scales * factor, None, bits)
        return ((groups - grid.decode(grid.encode(groups))).abs().amax(-1) / grid.scales.abs()) - 0.5

    assert (worst(1 + 1e-5) <= 1e-4).all()
    assert (worst(0.99) > 0).all()


@pytest.mark.parametrize(("bits", "zero"), KINDS)
def test_the_whole_range_keeps_half_a_step_and_a_rounded_zero_another_half(bits, zero):
    groups = random_groups() + torch.arange(-1, 2)[:, None]
    grid = range_grid(groups, bits, zero, 1.0)
    error = (groups - grid.decode(grid.encode(groups))).abs().amax(-1) / grid.scales.abs()
    # float16 zeros are off by up to 2^-11 of themselves, float16 scales by 2^-10 of the range
    assert (error <= {"symmetric": 0.5, "integer": 1.0, "float": 0.51}[zero] + 2**-10 * 2**bits).all()


@pytest.mark.parametrize("bits", BITS)
def test_an_integer_zero_keeps_the_value_zero_and_all_of_a_one_sided_group(bits):
    groups = random_groups().abs()
    groups[..., 0] = 0
    for signed in (groups, -groups, random_groups()):
        grid = choose_grid(signed, bits, "integer", Search())
        assert grid.zeros is not None and (grid.zeros == grid.zeros.round()).all()
        assert grid.zeros.min() >= 0 and grid.zeros.max() < 2**bits
        assert (grid.decode(grid.encode(torch.zeros_like(signed))) == 0).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_longer_side_gets_the_extra_code(bits, sign):
    lowest, highest = -middle_code(bits), middle_code(bits) - 1
    groups = sign * torch.tensor([[[lowest, highest] + [0] * 14]], dtype=torch.float32) * 0.01
    grid = choose_grid(groups, bits, "symmetric", Search())
    codes = grid.encode(groups)
    assert codes.min() == 0 and codes.max() == 2**bits - 1
    assert torch.sign(grid.scales).item() == sign


@pytest.mark.parametrize(("bits", "zero"), KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_search_is_never_worse_than_the_range(bits, zero, weighted):
    groups = random_groups()
    importance = torch.rand(3, 32, generator=torch.Generator().manual_seed(1)) if weighted else None
    plain, searched = choose_grid(groups, bits, zero, None), choose_grid(groups, bits, zero, Search(), importance)
    before, after = plain.error(groups, 2.0, importance), searched.error(groups, 2.0, importance)
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


def test_zeros_are_float16_values_where_they_fit():
    assert round_zeros(torch.tensor([1.0001, 2.5])).tolist() == [1.0, 2.5]
    assert round_zeros(torch.tensor([1.0001, 1e6])).tolist() == torch.tensor([1.0001, 1e6]).tolist()


@pytest.mark.parametrize(("bits", "zero"), KINDS)
def test_zero_groups_have_scale_one_and_stay_zero(bits, zero):
    groups = torch.zeros(2, 3, 16)
    groups[0, 0] = 1.0
    grid = choose_grid(groups, bits, zero, Search())
    assert (grid.scales.flatten()[1:] == 1).all()
    assert (grid.decode(grid.encode(groups))[1] == 0).all()


@pytest.mark.parametrize(("bits", "zero"), KINDS)
def test_what_is_packed_is_what_the_grid_says(bits, zero):
    groups = random_groups()
    grid = choose_grid(groups, bits, zero, None)
    codes = grid.encode(groups)
    tensor = pack_grid(codes.flatten(1), grid, zero)
    assert tensor.zero_kind == zero and tensor.bits == bits
    assert (unpack(tensor) == codes.flatten(1).numpy()).all()
    assert torch.equal(torch.from_numpy(dequantize(tensor)), grid.decode(codes).flatten(1))


@pytest.mark.parametrize("settings", [(1, 64), (5, 64), (4, 8), (4, 48), (4, 512), (4, 64, "middle"), (8, 64, "float")])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UsageProblem) as caught:
        check_grid(*settings)
    assert caught.value.code == "E-QUANT"
