"""A rotated model computes what it did before."""

import pytest
import torch

from dlm_edge.errors import JobError
from dlm_edge.models import load_model
from dlm_edge.quant.rotation import (
    LARGEST_CHANGE,
    MASK_RATIOS,
    Orthogonal,
    Rotation,
    check_invariance,
    hadamard,
    output_changes,
    rotate_model,
)
from tests.tiny import FAMILY_NAMES, make_checkpoint

WIDTHS = [1, 2, 12, 16, 48, 64, 96, 112, 7]


@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_orthogonal(width):
    matrix = Orthogonal.random(width, torch.Generator().manual_seed(0)).apply(torch.eye(width))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(width).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 4, 32])
def test_hadamard_has_entries_of_one_size(n):
    matrix = hadamard(torch.eye(n).double())
    torch.testing.assert_close(matrix.abs(), torch.full((n, n), n**-0.5).double())
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(n).double())


@pytest.mark.parametrize("size", ["power of two", "odd factor"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_output_stays_at_every_share_of_masks(family, size, tmp_path):
    shape = {} if size == "power of two" else {"hidden_size": 48, "head_dim": 12}
    model = load_model(make_checkpoint(tmp_path, family, **shape))
    rotated = rotate_model(model, Rotation.of(model.spec, seed=3))
    changes = check_invariance(model, rotated)
    assert tuple(changes) == MASK_RATIOS and max(changes.values()) < LARGEST_CHANGE
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in [rotated.final_norm])
    assert not torch.allclose(rotated.head.weight, rotated.embed.weight)  # untied, where it was tied


def test_a_planted_outlier_is_spread(tmp_path):
    model = load_model(make_checkpoint(tmp_path, "sdar"))
    model.embed.weight.data[:, 5] += 30.0
    rotated = rotate_model(model, Rotation.of(model.spec, seed=0))

    def peak_ratio(weight: torch.Tensor) -> float:
        peaks = weight.abs().amax(0)
        return float(peaks.max() / peaks.median())

    assert peak_ratio(model.embed.weight) > 10 and peak_ratio(rotated.embed.weight) < 1.5


@pytest.mark.parametrize("forgotten", ["embedding", "heads", "gain"])
def test_the_check_notices_what_was_forgotten(forgotten, tmp_path):
    model = load_model(make_checkpoint(tmp_path, "llada"))
    rotated = rotate_model(model, Rotation.of(model.spec, seed=0))
    if forgotten == "embedding":
        rotated.embed.weight = model.embed.weight
    elif forgotten == "heads":
        rotated.layers[1].v.weight = model.layers[1].v.weight
    else:
        rotated.layers[1].mlp_norm.weight = model.layers[1].mlp_norm.weight
    with pytest.raises(JobError) as caught:
        check_invariance(model, rotated)
    assert caught.value.code == "E-PARITY"


def test_the_seed_decides(tmp_path):
    model = load_model(make_checkpoint(tmp_path, "dream"))
    once, again, other = (rotate_model(model, Rotation.of(model.spec, seed)) for seed in (1, 1, 2))
    assert max(output_changes(once, again).values()) == 0
    assert not torch.equal(once.head.weight, other.head.weight)


def test_rows_may_come_in_pieces(tmp_path):
    model = load_model(make_checkpoint(tmp_path, "sdar"))
    rotation, rows = Rotation.of(model.spec, 0), model.embed.weight.data
    pieces = torch.cat([rotation.embedding(part) for part in rows.split(70)])
    assert torch.equal(pieces, rotation.embedding(rows))
