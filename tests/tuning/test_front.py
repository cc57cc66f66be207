"""The choice among measured settings."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from dlm_edge.tuning.front import TIED, fastest, front


class Row(NamedTuple):
    agreement: float
    speed_ratio: float
    steps_per_token: float = 1.0


STATIC = Row(1.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("rows", "agreement", "expected"),
    [
        ([STATIC, Row(0.99, 3.0), Row(0.9, 5.0)], 0.98, 1),
        ([STATIC, Row(0.99, 3.0), Row(0.9, 5.0)], 0.9, 2),
        ([STATIC, Row(0.99, 3.0), Row(0.9, 5.0)], 1.0, 0),
        ([STATIC, Row(0.99, 0.7)], 0.98, 0),  # slower than one token per step
        ([STATIC, Row(1, 4.0, 0.5), Row(1, 4.0 * (1 - TIED / 2), 0.4)], 0.98, 2),  # as fast, in fewer passes
        ([STATIC, Row(1, 4.0, 0.5), Row(1, 4.0 * (1 - TIED * 2), 0.4)], 0.98, 1),
        ([STATIC, Row(0.99, 4.0, 0.5), Row(1, 4.0, 0.5)], 0.98, 2),
        ([STATIC, Row(1, 4.0, 0.5), Row(1, 4.0, 0.5)], 0.98, 1),
    ],
)
def test_the_fastest_that_holds_the_agreement(rows, agreement, expected):
    assert fastest(rows, agreement) is rows[expected]


def test_the_front_holds_what_nothing_beats():
    rows = [Row(1.0, 1.0), Row(0.9, 3.0), Row(0.9, 2.0), Row(0.8, 3.0), Row(0.7, 4.0), Row(1.0, 0.5)]
    assert front(rows) == [rows[0], rows[1], rows[4]]
    assert front([rows[0], rows[0]]) == [rows[0], rows[0]]
