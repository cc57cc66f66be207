"""The page beside a quantized checkpoint: every layer and both models on it, whatever stands in the names."""

import math
import re
from html.parser import HTMLParser

import msgspec
import pytest

from dlm_edge.quant import quantize
from dlm_edge.quant.report import LayerReport, QuantizeReport
from dlm_edge.quant.report_page import BAR, report_page
from dlm_edge.quantized import LayerRecord
from tests.tiny import make_checkpoint

VOID = {"meta", "rect", "br"}  # without an end tag, or closed in itself


class Page(HTMLParser):
    """Rows of all tables as lists of cell texts, bars as (colour, width), and the tags that are open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.bars: list[tuple[str, float]] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for key, value in attrs if key in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "rect":
            self.bars.append((dict(attrs)["fill"], float(dict(attrs)["width"])))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def layer(name, error=0.01, rtn_error=0.04, **changes):
    record = LayerRecord(name=name, bits=3, group_size=32, method="gptq")
    report = msgspec.structs.replace(LayerReport.of(record, 1.0), error=error, rtn_error=rtn_error, input_peak=10.0)
    return msgspec.structs.replace(report, **changes)


def make_report(layers, **changes):
    quality = [
        {"low": 0.0, "high": 0.25, "tokens": 77, "before": 1.5, "after": 1.8},
        {"low": 0.75, "high": 1.0, "tokens": 88, "before": 2.0, "after": 1.0},
    ]
    report = QuantizeReport(
        output="out",
        method="gptq",
        bits_per_weight=3.25,
        size_bytes=0,
        source_size_bytes=3 << 20,
        seconds=12.0,
        peak_rss_bytes=1 << 30,
        layers=layers,
        fallbacks=[],
        quality=quality,
    )
    return msgspec.structs.replace(report, **changes)


def test_every_layer_of_a_job_is_on_its_page_with_its_own_error(tmp_path):
    source = make_checkpoint(tmp_path / "source", "sdar", n_layers=2, hidden_size=32, intermediate_size=48)
    (tmp_path / "texts.txt").write_text("one two three, four five six: seven")
    report = quantize(source, tmp_path / "out", bits=3, group_size=16, calib_data=tmp_path / "texts.txt")
    page = Page((tmp_path / "out" / "report.html").read_text())
    by_name = {row[0]: row for row in page.rows}
    assert len(report.layers) == 1 + 14
    for each in report.layers[1:]:
        assert by_name[each.name][1:3] == [str(each.bits), f"{each.error:.2e}"]
    for row in report.quality:
        cells = by_name[f"{row['low']:.0%} to {row['high']:.0%} hidden"]
        assert cells[1:4] == [str(row["tokens"]), f"{row['before']:.4f}", f"{row['after']:.4f}"]


def test_both_models_have_a_column_and_the_change_is_against_the_source():
    page = Page(report_page("model", make_report([])))
    assert page.rows == [
        ["", "tokens", "before", "after (nats per token)", "change"],
        ["0% to 25% hidden", "77", "1.5000", "1.8000", "+20.00%"],
        ["75% to 100% hidden", "88", "2.0000", "1.0000", "-50.00%"],
    ]


def test_a_bar_for_the_method_and_one_for_rounding_to_nearest():
    dark, pale = "#4062bb", "#cfd6e6"
    page = Page(report_page("model", make_report([layer("a", 0.01, 0.04), layer("b", 0.0, 0.0), layer("c", 0.02)])))
    assert page.bars == [
        *((pale, BAR), (dark, BAR / 2)),
        *((pale, 0.0), (dark, 0.0)),
        *((pale, BAR), (dark, pytest.approx(BAR * math.sqrt(0.5), abs=0.05))),
    ]


def test_a_layer_that_lost_nothing_at_all_and_one_without_an_error():
    page = Page(report_page("model", make_report([layer("exact", 0.0, 0.0), layer("unseen", None, None)])))
    names = [row[0] for row in page.rows]
    assert "exact" in names and "unseen" not in names
    assert {width for _, width in page.bars} == {0.0}


def test_names_and_notes_are_text_and_never_markup():
    nasty = "<script>alert('&amp;')</script>\"x"
    layers = [layer(nasty, notes=[nasty], treatment=[nasty])]
    changes = {"fallbacks": [nasty], "recipe": {"name": nasty}, "calibration": {"data": nasty}, "method": nasty}
    page = Page(report_page(nasty, make_report(layers, **changes)))
    assert page.open == [] and "script" not in page.tags
    (row,) = [row for row in page.rows if row[0] == nasty]
    assert row[-1] == f"{nasty}; {nasty}"
    assert page.words.count(nasty) >= 6  # title, heading, method, the row's two cells, fallbacks


def test_the_page_needs_nothing_else_and_tells_no_times():
    page = Page(report_page("model", make_report([layer("a")])))
    assert page.links == [] and page.open == [] and not page.tags & {"script", "link", "img", "iframe"}
    again = make_report([layer("a", seconds=9.0)], seconds=99.0, peak_rss_bytes=5)
    assert report_page("model", again) == report_page("model", make_report([layer("a")]))
    assert not re.search(r"url\(|@import|https?:", report_page("model", again))
