"""A rotated model computes what it did before, and the job that rotates one checks it."""

import pytest
import torch

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.errors import InputFileError, JobError
from dlm_edge.journal import JOURNAL
from dlm_edge.models import load_model
from dlm_edge.quant import invariance, quantize
from dlm_edge.quant import rotation as rotation_module
from dlm_edge.quant.invariance import LARGEST_CHANGE, InvarianceCheck, probe_ids, summary
from dlm_edge.quant.rotation import Orthogonal, Rotation, hadamard
from dlm_edge.quant.source_weights import SourceWeights
from tests.quant.stopped_jobs import hashes, plant_nan
from tests.tiny import FAMILY_NAMES, make_checkpoint

WIDTHS = [1, 2, 12, 16, 48, 64, 96, 112, 7]
# Of the largest logit, float32, through all layers: at most 2.3e-6 over families and both reference models.
CHANGE = 1e-5


@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_orthogonal(width):
    matrix = Orthogonal.random(width, torch.Generator().manual_seed(0)).apply(torch.eye(width))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(width).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 4, 32])
def test_hadamard_has_entries_of_one_size(n):
    matrix = hadamard(torch.eye(n).double())
    torch.testing.assert_close(matrix.abs(), torch.full((n, n), n**-0.5).double())
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(n).double())


def rotated_weights(folder, seed: int = 0, *, zero_nonfinite: bool = False) -> SourceWeights:
    source = open_checkpoint(folder)
    return SourceWeights(source, zero_nonfinite=zero_nonfinite, rotation=Rotation.of(source.spec, seed))


def run_check(weights: SourceWeights) -> dict:
    with torch.inference_mode():
        check = InvarianceCheck(weights)
        spec = weights.checkpoint.spec
        layers = [check.turn(i, weights.source_layer(i)) for i in range(spec.n_layers)]
        return summary(spec, check.embedding, layers, check.logits())


def rotated_model(folder, weights: SourceWeights):
    """The whole model that a job quantizes, from the rows and layers it reads."""
    model = load_model(folder)
    model.head.weight = torch.nn.Parameter(model.head.weight.clone(), requires_grad=False)  # untied
    for role, tensor in (("embed", model.embed), ("final_norm", model.final_norm), ("head", model.head)):
        rows = weights.rows(f"{role}.weight", 0, len(tensor.weight))
        tensor.weight = torch.nn.Parameter(torch.from_numpy(rows), requires_grad=False)
    for i in range(len(model.layers)):
        model.layers[i] = weights.layer(i)
    return model


@pytest.mark.parametrize("size", ["power of two", "odd factor"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_output_stays_at_every_share_of_masks(family, size, tmp_path):
    shape = {} if size == "power of two" else {"hidden_size": 48, "head_dim": 12}
    folder = make_checkpoint(tmp_path, family, **shape)
    weights = rotated_weights(folder, seed=3)
    found = run_check(weights)
    assert 0 < found["logits_change"] <= found["largest_change"] <= LARGEST_CHANGE and found["tokens"] == 320
    model, rotated = load_model(folder), rotated_model(folder, weights)
    ids = probe_ids(model.spec)
    with torch.inference_mode():
        before, after = model(ids), rotated(ids)
    assert ((after - before).abs().amax((1, 2)) <= CHANGE * before.abs().amax((1, 2))).all()
    assert torch.equal(rotated.final_norm.weight, torch.ones_like(rotated.final_norm.weight))
    assert not torch.allclose(rotated.head.weight, rotated.embed.weight)  # untied, where it was tied


@pytest.mark.parametrize("shape", [{}, {"hidden_size": 48, "head_dim": 12}], ids=["power of two", "odd factor"])
def test_pieces_of_a_layer_turn_as_the_whole(shape, tmp_path, monkeypatch):
    folder = make_checkpoint(tmp_path, "fast_dllm_v2", **shape)
    turned = []
    for values in (1 << 30, 200):  # all at once; three rows of the widest
        monkeypatch.setattr(rotation_module, "PIECE_VALUES", values)
        turned.append(rotated_weights(folder).layer(0).state_dict())
    for name, weight in turned[0].items():
        torch.testing.assert_close(turned[1][name], weight, rtol=0, atol=1e-7)


def test_a_planted_outlier_is_spread(tmp_path):
    model = load_model(make_checkpoint(tmp_path, "sdar"))
    model.embed.weight.data[:, 5] += 30.0
    rotated = Rotation.of(model.spec, seed=0).embedding(model.embed.weight.data)

    def peak_ratio(weight: torch.Tensor) -> float:
        peaks = weight.abs().amax(0)
        return float(peaks.max() / peaks.median())

    assert peak_ratio(model.embed.weight) > 10 and peak_ratio(rotated) < 1.5


def forget(monkeypatch, part: str) -> None:
    """A rotation that leaves something out."""
    rotate = Rotation.layer

    def layer(self, layer):
        kept = {"heads": layer.v.weight, "gain": layer.mlp_norm.weight}.get(part)
        before = None if kept is None else kept.clone()
        rotate(self, layer)
        if kept is not None:
            kept.copy_(before)

    monkeypatch.setattr(Rotation, "layer", layer)
    if part == "embedding":
        monkeypatch.setattr(Rotation, "embedding", lambda self, rows: rows.float())
    if part == "final gain":
        head = Rotation.head
        monkeypatch.setattr(Rotation, "head", lambda self, rows, gain: head(self, rows, torch.ones_like(gain)))


@pytest.mark.parametrize(
    ("part", "where"),
    [("embedding", "the embedding"), ("heads", "layer 0"), ("gain", "layer 0"), ("final gain", "the logits")],
)
def test_the_check_notices_what_was_forgotten(part, where, tmp_path, monkeypatch):
    folder = make_checkpoint(tmp_path, "llada")
    forget(monkeypatch, part)
    with pytest.raises(JobError, match=where) as caught:
        run_check(rotated_weights(folder))
    assert caught.value.code == "E-PARITY"


def test_a_job_stops_at_the_layer_that_changed_and_keeps_those_before(tmp_path, monkeypatch):
    """Once the cause is gone it goes on to the same bytes; the head is checked after the last layer."""
    source = make_checkpoint(tmp_path / "source", "sdar", n_layers=3)
    settings = {"method": "rtn", "bits": 4, "group_size": 16, "rotate": True}
    quantize(source, tmp_path / "whole", **settings)
    turn = InvarianceCheck.turn

    def spoiled(self, number, layer):
        if number == 1:
            layer.o.weight[:] = 0  # what the source does is known only before
            self.advance = lambda *_: torch.ones(self.ids.shape, dtype=torch.bool)
        return turn(self, number, layer)

    with monkeypatch.context() as patch:
        patch.setattr(InvarianceCheck, "turn", spoiled)
        with pytest.raises(JobError, match="the output of layer 1") as caught:
            quantize(source, tmp_path / "out", **settings)
    assert caught.value.code == "E-PARITY"
    assert '"layer-0000"' in (tmp_path / "out.partial" / JOURNAL).read_text()
    with monkeypatch.context() as patch:
        forget(patch, "final gain")
        with pytest.raises(JobError, match="the logits"):
            quantize(source, tmp_path / "out", resume=True, **settings)
    assert '"layer-0002"' in (tmp_path / "out.partial" / JOURNAL).read_text()
    report = quantize(source, tmp_path / "out", resume=True, **settings)
    assert 0 < report.rotation["logits_change"] <= report.rotation["largest_change"] <= LARGEST_CHANGE
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert "changed the logits by" in (tmp_path / "out" / "report.html").read_text()


def test_nonfinite_weights_are_refused_or_left_out(tmp_path):
    folder = make_checkpoint(tmp_path, "llada", n_layers=1)
    plant_nan(folder, "model.transformer.blocks.0.attn_norm.weight")
    with pytest.raises(InputFileError) as caught:
        run_check(rotated_weights(folder))
    assert caught.value.code == "E-NAN"
    assert run_check(rotated_weights(folder, zero_nonfinite=True))["largest_change"] <= LARGEST_CHANGE


def test_states_that_overflow_are_refused_or_left_out(tmp_path):
    weights = rotated_weights(make_checkpoint(tmp_path, "llada", n_layers=1), zero_nonfinite=True)
    with torch.inference_mode():
        check = InvarianceCheck(weights)
        check.states[0, 3] = torch.inf
        finite = check.advance(0, weights.source_layer(0))
        assert not finite[0].any() and finite[1:].all() and torch.isfinite(check.states).all()  # its whole row sees it
        check.states[:] = torch.inf
        with pytest.raises(InputFileError, match="layer 0: 320 of 320"):
            check.advance(0, weights.source_layer(0))


def test_the_bound_is_no_wider_than_rounding():
    assert invariance.judged("anything", 1.234e-6) == 1.23e-6
    for change in (1.1e-5, float("inf"), float("nan")):
        with pytest.raises(JobError):
            invariance.judged("anything", change)


def test_the_seed_decides(tmp_path):
    folder = make_checkpoint(tmp_path, "dream")
    once, again, other = (rotated_weights(folder, seed).layer(0).q.weight for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)


def test_rows_may_come_in_pieces(tmp_path):
    model = load_model(make_checkpoint(tmp_path, "sdar"))
    rotation, rows = Rotation.of(model.spec, 0), model.embed.weight.data
    pieces = torch.cat([rotation.embedding(part) for part in rows.split(70)])
    assert torch.equal(pieces, rotation.embedding(rows))
