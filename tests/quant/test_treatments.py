"""Every record names what was done about outliers and why, and `inspect` foresees what the recipe w8a8 does."""

import msgspec
import pytest

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.export import export
from dlm_edge.quant import quantize
from dlm_edge.quant.mixed import more_bits
from dlm_edge.quant.outlier_injection import inject_outliers
from dlm_edge.quant.outliers import profile_outliers
from dlm_edge.quant.treatments import Decision, is_none, settled
from dlm_edge.quantized import RECORD_NAME, LayerRecord, QuantizationRecord
from tests.tiny import make_checkpoint

TOKENS = 1024


def test_reasons_stand_only_where_nothing_was_done():
    smooth, split = Decision("smooth", "strength 0.5"), Decision("split", "3 columns")
    neither = [Decision("none", "no scale"), Decision("none", "no peak"), Decision("none", "no peak")]
    assert settled([smooth, neither[0], split]) == ["smooth (strength 0.5)", "split (3 columns)"]
    assert settled(neither) == ["none (no scale; no peak)"] and is_none(settled(neither)[0])
    assert settled([]) == ["none (no calibration states, so nothing was measured)"]
    assert not is_none(settled([smooth])[0])


def test_more_bits_are_told_with_what_fewer_would_cost():
    errors = {"2": 0.11, "3": 0.02, "4": 0.004, "8": 1e-5}
    (found,) = more_bits(4, 2.5, errors)
    assert str(found) == "more bits (4, the mean is 2.5; rounded to nearest: error 4.0e-03, with 3 2.0e-02)"
    assert more_bits(2, 2.5, errors) == []


def records_of(source, tmp_path, **settings) -> dict[str, LayerRecord]:
    quantize(source, tmp_path / "out", calib_tokens=TOKENS, **settings)
    record = msgspec.json.decode((tmp_path / "out" / RECORD_NAME).read_bytes(), type=QuantizationRecord)
    return {layer.name: layer for layer in record.layers}


@pytest.mark.parametrize("family", ["llada", "sdar"])
def test_inspect_foresees_what_w8a8_records(family, tmp_path):
    plain = make_checkpoint(tmp_path / "plain", family, n_layers=2)
    source = open_checkpoint(inject_outliers(plain, tmp_path / "injected", scale=100.0))
    records = records_of(source.path, tmp_path, recipe="w8a8")
    profiles = profile_outliers(source, n_tokens=TOKENS)
    assert len(profiles) == 8
    for profile in profiles:
        for linear in profile.linears:
            record = records[source.tensor_name(f"layers.{profile.layer}.{linear}.weight")]
            names = [[t.partition(" (")[0] for t in each] for each in (record.treatment, profile.treatments)]
            assert names[0] == names[1], (record.name, record.treatment, profile.treatments)
            assert ("split" in names[0]) == (record.outlier_columns > 0)
            if linear != "o":  # outliers of scale 100 were planted everywhere else
                assert names[0] != ["none"] and any(c.isdigit() for c in record.treatment[0])


@pytest.mark.parametrize("recipe", ["w4", "w3", "w2"])
def test_every_record_of_few_bits_names_what_rounding_the_activations_would_cost(recipe, tmp_path):
    source = make_checkpoint(tmp_path / "source", "sdar", n_layers=1)
    records = [r for r in records_of(source, tmp_path, recipe=recipe).values() if "embed" not in r.name]
    assert len(records) == 7
    for record in records:
        (told,) = record.treatment
        assert told.startswith(f"none (activations in int8 blocks of {record.group_size} would add ")
        assert told.endswith(f" to an output error of {record.error:.1e})") and record.activations == "float"


@pytest.mark.parametrize("method", ["decoupleq", "gptq"])
def test_planted_outliers_keep_their_activations_from_rounding(method, tmp_path):
    plain = make_checkpoint(tmp_path / "plain", "sdar", n_layers=2)
    source = inject_outliers(plain, tmp_path / "injected", scale=100.0)
    records = records_of(source, tmp_path, method=method, group_size=32)
    for name, record in records.items():
        exact = record.activations == "exact"
        assert exact == any(t.startswith("float (activations in int8 blocks of 32") for t in record.treatment)
        if "layers" in name and "down" not in name:  # its planted channels are few among its own
            assert exact == ("o_proj" not in name), (name, record.treatment)
    told: list[str] = []
    bundle = export(tmp_path / "out", tmp_path / "bundle", profile="w4a8", progress=told.append)
    nodes = {node["name"]: node["activations"] for node in bundle.nodes}
    assert (nodes["layers.0.q.weight"], nodes["layers.0.o.weight"]) == ("float", "int8")
    n_exact = sum(record.activations == "exact" for record in records.values())
    assert f"notice    {n_exact} weights keep float activations, as quantizing measured outliers that need it" in told
