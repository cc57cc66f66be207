"""Which treatment a profile leads to."""

import msgspec
import pytest

from dlm_edge.quant.outliers import Channel, InputProfile
from dlm_edge.quant.treatments import ROTATE_FROM, SMOOTH_FROM, SPLIT_FROM, choose_treatments
from tests.tiny import make_spec

CALM = InputProfile(
    layer=0,
    linears=["down"],
    channels=128,
    tokens=1000,
    typical=1.0,
    peak_ratio=1.5,
    share_above=0.0,
    normal_count=0,
    massive_count=0,
    normal=[],
    massive=[],
    super_outlier=None,
)
SUPER = Channel(channel=7, peak=300.0, mean=250.0, share=1.0)


def profile(**changes) -> InputProfile:
    return msgspec.structs.replace(CALM, **changes)


@pytest.mark.parametrize("activations", ["float", "int8"])
def test_calm_inputs_are_left_alone(activations):
    assert choose_treatments(CALM, make_spec("llada"), bits=4, activations=activations) == []


@pytest.mark.parametrize(
    ("family", "linears", "ratio", "expected"),
    [
        ("llada", ["q", "k", "v"], SMOOTH_FROM, ["smooth"]),
        ("llada", ["o"], SMOOTH_FROM, ["smooth"]),
        ("sdar", ["o"], ROTATE_FROM - 0.1, []),
        ("sdar", ["o"], ROTATE_FROM, ["rotate"]),
        ("sdar", ["o"], SPLIT_FROM, ["split"]),
        ("sdar", ["down"], SPLIT_FROM, ["smooth", "split"]),
        ("sdar", ["down"], SMOOTH_FROM, ["smooth"]),
        ("dream", ["gate", "up"], 100.0, ["smooth"]),
        ("dream", ["gate", "up"], SMOOTH_FROM - 0.1, []),
    ],
)
def test_int8_activations(family, linears, ratio, expected):
    found = profile(linears=linears, peak_ratio=ratio)
    assert choose_treatments(found, make_spec(family), bits=8, activations="int8") == expected


@pytest.mark.parametrize(
    ("bits", "linears", "changes", "expected"),
    [
        (3, ["down"], {"massive_count": 2}, ["more bits"]),
        (2, ["down"], {"super_outlier": SUPER}, ["more bits"]),
        (4, ["down"], {"massive_count": 2}, []),
        (2, ["gate", "up"], {"massive_count": 2}, []),
    ],
)
def test_few_bits_under_float_activations(bits, linears, changes, expected):
    found = profile(linears=linears, peak_ratio=200.0, **changes)
    assert choose_treatments(found, make_spec("sdar"), bits=bits, activations="float") == expected
