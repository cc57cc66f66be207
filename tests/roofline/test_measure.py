"""A roofline of tiny bundles: parts add up, shares follow from what is counted, and the page holds it all."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import msgspec
import pytest

from dlm_edge import machine_peaks
from dlm_edge.cli import main
from dlm_edge.machine_peaks import Peak, PeakMeter, Peaks
from dlm_edge.roofline import Roofline, measure, measure_roofline
from dlm_edge.roofline.host import outside_of_runs
from dlm_edge.roofline.measure import middle_half, place_of, step_seconds
from dlm_edge.roofline.passes import planned_passes
from dlm_edge.roofline.work import Work
from dlm_edge.runtime import Engine
from tests.tiny import make_spec


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(measure, "PASSES_S", 0.01)
    monkeypatch.setattr(measure, "PEAK_ROUNDS", 1)
    monkeypatch.setattr(machine_peaks, "TURN_S", 0.001)
    monkeypatch.setattr(machine_peaks, "BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr(machine_peaks, "LARGEST_BUFFER", 1 << 20)


def roofline_of(bundle, **options):
    with Engine.open(bundle.path, threads=1) as engine:
        return measure_roofline(engine, bundle, threads=1, prompt_tokens=72, settings={"sampler": "static"}, **options)


CASES = [("sdar", "kv-fp32", None), ("llada", "none", None), ("dream", "x-latent-int4", None)]
CASES += [("sdar", "kv-int4x2", None), ("fast_dllm_v2", "kv-fp32", "w8a8, all at once"), ("llada", "x-cl4", None)]


@pytest.mark.parametrize(("family", "layout", "form"), CASES)
def test_parts_add_up_to_the_pass(bundle_of, family, layout, form):
    found = roofline_of(bundle_of(family, layout, form))
    assert isinstance(found, Roofline)
    names = ["step", "one row"] if layout == "none" else ["prefill", "step", "one row"]
    assert [phase.name for phase in found.phases] == names
    for phase in found.phases:
        parts = {part.name: part for part in phase.parts}
        assert sum(part.seconds for part in phase.parts) + phase.unattributed_seconds == pytest.approx(phase.seconds)
        assert sum(part.share for part in phase.parts) == pytest.approx(1 - phase.unattributed_seconds / phase.seconds)
        assert {"linear", "attention", "head", "glue", "runtime", "binding"} <= set(parts) and "other" not in parts
        assert ("store" in parts) == (phase.name == "prefill") == ("scoring" not in parts) == ("loop" not in parts)
        assert all(part.seconds >= 0 for part in phase.parts)
        assert sum(phase.linear_seconds.values()) == pytest.approx(parts["linear"].seconds)
        placed = [parts[name].place for name in ("linear", "attention", "head") if parts[name].place]
        assert sum(place.operations for place in placed) == phase.whole.operations
        assert sum(place.bytes for place in placed) == pytest.approx(phase.whole.bytes)
    step = step_seconds(found)
    assert sum(seconds for name, seconds in step.items() if name != "step") == pytest.approx(step["step"])
    assert found.host.steps == 8  # a block, one token a step
    json.dumps(msgspec.to_builtins(found), allow_nan=False)


def peaks(int8=100.0, fp32=50.0, bandwidth=10.0):
    def of(value):
        return Peak(value=value, spread=1.0)

    rows = {"32": of(int8 / 2), "128": of(int8)}
    return Peaks(threads=1, int8=rows, fp32={"32": of(fp32)}, bandwidth=of(bandwidth), buffer_bytes=1)


def test_a_place_lies_under_the_roof_that_takes_longer():
    place = place_of(Work(10**9, 10**9, 10**8), 0.1, peaks())  # 10 ms of int8 arithmetic, 10 ms of memory
    assert place is not None
    assert (place.gflop_s, place.gbyte_s, place.operations_per_byte) == pytest.approx((10.0, 1.0, 10.0))
    assert (place.compute_share, place.bandwidth_share, place.roof_share) == pytest.approx((0.1, 0.1, 0.1))
    place = place_of(Work(10**9, 0, 10**8), 0.1, peaks())
    assert place is not None and (place.roof, place.compute_peak) == ("compute", pytest.approx(50.0))
    place = place_of(Work(10**9, 5 * 10**8, 10**9), 0.1, peaks())  # 5 + 10 ms of arithmetic, 100 ms of memory
    assert place is not None and (place.roof, place.roof_share) == ("bandwidth", pytest.approx(1.0))
    assert place.compute_share == pytest.approx(0.15)
    assert place_of(Work(), 0.1, peaks()) is None


def test_the_middle_half_leaves_interruptions_out():
    assert middle_half([1, 2, 3, 4, 5, 6, 7, 100]) == [3, 4, 5, 6]
    assert middle_half([1, 2, 3]) == [1, 2, 3]


def test_host_time_is_between_the_runs_and_without_storing():
    runs = [(0.0, 1.0), (2.0, 3.0), (3.5, 4.0), (5.0, 6.0)]  # a pass over the prompt, two steps, a clean pass
    between, rows, steps = outside_of_runs(runs, [0, 8, 7, 0], [(1.0, 1.5), (4.0, 4.25)], 7.0)
    assert (between, rows, steps) == (pytest.approx(0.625), 7.5, 2)  # medians of 0.5 and 1.0 - 0.25


@pytest.mark.parametrize("prompt_tokens", [3, 8, 72, 2000, 10**6])
@pytest.mark.parametrize("family", ["llada", "sdar"])
def test_passes_fit_into_the_model(family, prompt_tokens):
    spec = make_spec(family)
    for layout in ("kv-fp32", "none") if family == "llada" else ("kv-fp32",):
        for at in planned_passes(spec, layout, prompt_tokens).values():
            assert at.start + at.rows <= spec.max_positions and at.cache_len <= spec.max_positions
            assert 0 < at.rows and at.stored <= at.rows and at.logit_rows <= at.rows


def test_peaks_are_measured():
    meter = PeakMeter(1, rows=(4, 8), matrix_bytes=4096)
    meter.measure(2)
    found = meter.peaks()
    assert set(found.int8) == set(found.fp32) == {"4", "8"}
    measured = [*found.int8.values(), *found.fp32.values(), found.bandwidth]
    assert all(peak.value > 0 and peak.spread >= 1 for peak in measured)
    assert found.gflop_s("fp32") == max(peak.value for peak in found.fp32.values())


def test_the_integer_product_multiplies():
    import numpy as np

    multiply = machine_peaks.integer_product(1, 64)
    result = multiply(3)
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (64, 64), np.int8).astype(np.int64)
    rows = rng.integers(0, 256, (max(machine_peaks.ROWS), 64), np.uint8)[:3].astype(np.int64)
    np.testing.assert_array_equal(result, (rows - 128) @ weight)


def test_too_little_memory_is_said(bundle_of, monkeypatch):
    monkeypatch.setattr(measure, "available_bytes", lambda: 1000)
    reason = roofline_of(bundle_of())
    assert isinstance(reason, str) and "1 MiB" not in reason[:12] and "are free" in reason


class Tags(HTMLParser):
    """Fails where an end does not fit; collects the cells of all tables."""

    VOID = ("meta",)

    def __init__(self, text):
        super().__init__()
        self.open, self.cells = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


ARGUMENTS = "--prompt-tokens 24 --new-tokens 8 --repeats 1 --sampler static --threads 1".split()


def test_bench_writes_the_page_and_the_keys(bundle_of, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["bench", str(bundle_of().path), *ARGUMENTS, "--report", str(page), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["roofline"]) == {"peaks", "phases", "host"} and report["notes"] == []
    assert {"prefill", "steps", "step", "step.linear", "step.attention", "step.head"} <= set(report["time_by_phase"])
    assert {"machine", "versions", "rows"} <= set(report)
    text = page.read_text(encoding="utf-8")
    tags = Tags(text)
    assert not tags.open and "step, linear" in tags.cells and "reading memory" in tags.cells
    figure = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + len("</svg>")])
    places = sum(part["place"] is not None for phase in report["roofline"]["phases"] for part in phase["parts"])
    assert len(figure.findall("g")) == places + 3  # and the three passes as a whole
    for circle in figure.iter("circle"):
        assert 0 <= float(circle.get("cx", -1)) <= 760 and 0 <= float(circle.get("cy", -1)) <= 440
    assert "http" not in text.replace("http-equiv", "") and "<script" not in text


def test_bench_prints_tables(bundle_of, capsys):
    assert main(["bench", str(bundle_of().path), *ARGUMENTS]) == 0
    printed = capsys.readouterr().out
    assert "one row, whole" in printed and "int8 product" in printed and "attention  prompt" in printed


def test_the_roofline_can_be_left_out(bundle_of, capsys):
    assert main(["bench", str(bundle_of().path), *ARGUMENTS, "--no-roofline", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["roofline"] is None and set(report["time_by_phase"]) == {"prefill", "steps"}
    assert main(["bench", str(bundle_of().path), "--no-roofline", "--report", "page.html"]) == 2
    assert "drop one of them" in capsys.readouterr().err
