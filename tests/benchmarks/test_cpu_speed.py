"""The arithmetic of benchmarks/cpu: what it compares, and how it says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import random_checkpoint
from benchmarks.cpu import peer, profile_flips, profile_quality, tables, timing
from benchmarks.cpu.bound import bound_of
from benchmarks.cpu.rows import Rows
from benchmarks.cpu.timing import Times
from dlm_edge.bundle import open_bundle
from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.errors import InputFileError
from dlm_edge.export import export
from dlm_edge.machine_peaks import Peak, Peaks


def test_published_times_grow_as_the_machine_is_slower() -> None:
    here = {"int8": {"128": {"value": 653.5}}}
    assert peer.scaled("dream-0.5b", "q4_0", 192, 1, here) == pytest.approx(2 * 0.684)
    assert peer.scaled("dream-0.5b", "q4_0", 1152, 1, here) is None


def test_ratios_are_taken_within_a_round_on_the_clock_that_counts() -> None:
    taken = {"a": [Times(1, 4), Times(9, 4), Times(2, 4)], "b": [Times(1, 2), Times(3, 2), Times(1, 2)]}
    assert timing.over(taken, "a", "b", threads=1) == 2
    assert timing.over(taken, "a", "b", threads=2) == 2  # of 1, 3 and 2
    assert timing.seconds(taken["a"], 1) == 4 and timing.seconds(taken["a"], 2) == 2


def test_runs_take_turns_after_one_that_is_not_counted() -> None:
    called: list[str] = []

    def run_of(name: str) -> timing.Timed:
        return lambda: timing.timed(lambda: called.append(name))

    found = timing.in_turns({"a": run_of("a"), "b": run_of("b")}, rounds=2, warm=("b",))
    assert "".join(called) == "babab" and {name: len(times) for name, times in found.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("value", "target", "least", "said"),
    [
        (5, 5, True, "met"),
        (4, 5, True, "missed by 1.25x"),
        (0.5, 0.5, False, "met"),
        (0.6, 0.5, False, "missed by 1.20x"),
    ],
)
def test_a_target_is_met_or_missed_by_a_factor(value: float, target: float, least: bool, said: str) -> None:
    assert tables.verdict(value, target, least=least) == said


def test_rows_survive_and_refuse_another_machine(tmp_path: Path) -> None:
    about, path = {"machine": "a", "date": "1"}, tmp_path / "rows.json"
    Rows(path, about, ("machine",)).add("step", "x", {"seconds": 1})
    again = Rows(path, about | {"date": "2"}, ("machine",))
    assert again.section("step") == {"x": {"seconds": 1}} and again.content["date"] == "1"
    with pytest.raises(InputFileError, match="E-RESUME"):
        Rows(path, about | {"machine": "b"}, ("machine",))


def test_disturbed_rows_of_several_threads_are_measured_again(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.json", {}, (), bearable=0.2)
    for key, threads, others in (("one", 1, 1.0), ("two", 2, 0.5), ("quiet", 2, 0.1), ("unknown", 2, None)):
        rows.add("forward", key, {"threads": threads, "other_programs": others})
    keys = ("none", "one", "two", "quiet", "unknown")
    assert [key for key in keys if rows.lacks("forward", key)] == ["none", "two"]


def quality_row(right: str, nll: list[float]) -> dict[str, object]:
    return {"right": {"sort": right}, "masked_nll": nll}


def test_flip_rates_weigh_steps_and_differences_are_paired() -> None:
    row = {"source": "1/10 0/30"}
    rate, by_prompt = profile_flips.rate(row, "source")
    assert rate == pytest.approx(1 / 40) and by_prompt.sum() == pytest.approx(rate)
    assert profile_flips.more(row, row) == (0, 0)
    mean, error = profile_quality.paired(np.ones(4), profile_quality.is_right(quality_row("1101", [])))
    assert (mean, error) == (0.25, pytest.approx(0.25))


def test_a_profile_is_compared_with_its_twin() -> None:
    twin, worse = quality_row("1111", [1.0, 2.0]), quality_row("1110", [1.1, 2.1])
    rows = {"m/fp32": quality_row("1111", [1.0, 2.0]), "m/gptq4/w4": twin, "m/gptq4/w4a8": worse}
    same = {"source": "0/50 0/50", "twin": "0/50 0/50"}
    *_, of_twin, of_worse = tables.quality(rows, {"m/gptq4/w4": same, "m/gptq4/w4a8": same})
    assert of_twin.endswith("| met |")
    assert of_worse.endswith("| missed by 24.50 points |")  # a question of four, less half a point


@pytest.mark.parametrize("family", ["dream", "llada", "sdar"])
def test_a_random_checkpoint_is_one_of_its_family(tmp_path: Path, family: str) -> None:
    folder = random_checkpoint.write_checkpoint(tmp_path / family, "tiny", block_length=32, family=family)
    found = open_checkpoint(folder).spec
    expected = random_checkpoint.make_spec("tiny", 32, family)
    assert (found.family, found.n_kv_heads, found.tied_head, found.qkv_bias) == (
        family, expected.n_kv_heads, expected.tied_head, expected.qkv_bias,
    )  # fmt: skip
    assert found.conventions.logit_shift == expected.conventions.logit_shift


def test_the_bound_counts_products_by_their_peak_and_bytes_once(tmp_path: Path) -> None:
    source = random_checkpoint.write_checkpoint(tmp_path / "source", "tiny", block_length=32, family="dream")
    export(source, tmp_path / "bundle", profile="fp32")
    manifest = open_bundle(tmp_path / "bundle").manifest

    def peaks(fp32: float) -> Peaks:
        def peak(value: float) -> Peak:
            return Peak(value=value, spread=1.0)

        kinds = {"int8": {"32": peak(1.0)}, "fp32": {"32": peak(fp32)}}
        return Peaks(threads=1, bandwidth=peak(2.0), buffer_bytes=1, **kinds)

    slow, fast = bound_of(manifest, 64, peaks(1.0)), bound_of(manifest, 64, peaks(4.0))
    weights = sum(2 * 32 * rows * columns for rows, columns in [(128, 128)] * 2 + [(64, 128)] * 2 + [(256, 128)] * 3)
    assert slow["products"]["linear"] == pytest.approx(2 * weights / 1e9)  # two layers; nothing of it is in int8
    assert fast["products"]["linear"] == pytest.approx(slow["products"]["linear"] / 4)
    assert fast["bytes"] == slow["bytes"] > 0
