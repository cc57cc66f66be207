"""The live view: what is left on the screen while a text is written, and when it is finished."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("rich", reason="needs the cli extra")

from rich.console import Console

from dlm_edge.cli.live import MASK, LiveView, canvas, printable, show_live, summary
from dlm_edge.runtime import Cell
from tests.cli.screen import Screen
from tests.runtime.conftest import make_engine  # noqa: F401


class Terminal(Console):
    """A console whose output a screen shows at once, and whose size is that of the screen."""

    def __init__(self, width=20, height=6, **options):
        self.screen = Screen(width)
        super().__init__(file=Feed(self.screen), force_terminal=True, highlight=False, _environ={}, **options)
        self.screen_height = height

    @property
    def size(self):
        from rich.console import ConsoleDimensions

        return ConsoleDimensions(self.screen.width, self.screen_height)


class Feed(io.StringIO):
    def __init__(self, screen):
        super().__init__()
        self.screen = screen

    def write(self, text):
        self.screen.feed(text)
        return len(text)


def cells(text, *, confidence=0.9):
    """A dot is a mask."""
    return [Cell(None, None, confidence) if c == "." else Cell(1, c, confidence) for c in text]


def test_words_and_masks():
    line = canvas("done ", [Cell(None, None, 0.2), Cell(5, "word", 0.9), Cell(None, None, 0.8)])
    assert line.plain == f"done {MASK}word{MASK}"
    assert [str(span.style) for span in line.spans] == ["bright_black", "green", "cyan"]


def test_the_canvas_is_replaced_in_place():
    terminal = Terminal()
    view = LiveView(terminal)
    view.show(cells("....."))
    assert terminal.screen.text == MASK * 5
    view.show(cells(".b..e"))
    assert terminal.screen.text == f"{MASK}b{MASK}{MASK}e"
    view.commit("ab")
    view.show(cells("..e"))
    assert terminal.screen.text == f"ab{MASK}{MASK}e"
    view.commit("cde")
    view.finish()
    assert terminal.screen.text == "abcde"


def test_whole_lines_are_left_to_the_terminal_once():
    terminal = Terminal(height=4)
    view = LiveView(terminal)
    for number in range(9):
        view.commit(f"line {number}\n")
        view.show(cells("..."))
    view.commit("end")
    view.finish()
    assert terminal.screen.text.splitlines() == [*(f"line {number}" for number in range(9)), "end"]


@pytest.mark.parametrize(
    "text", ["ab cd ef gh ij kl mn op qr st uv wx", "漢字かな交じり文の長い行です", "e\u0301" * 30]
)
def test_long_and_wide_lines_wrap_and_are_erased_whole(text):
    terminal = Terminal(width=11)
    view = LiveView(terminal)
    for at in range(len(text)):
        view.commit(text[at])
        view.show(cells("..漢.."))
    view.finish()
    assert terminal.screen.text == text


def test_a_line_longer_than_the_screen_shows_its_end():
    terminal = Terminal(width=11, height=4)
    view = LiveView(terminal)
    view.commit("x" * 200 + "END")
    view.show(cells(".."))
    rows = terminal.screen.text.splitlines()
    assert len(rows) == 3 and rows[-1].endswith(f"END{MASK}{MASK}")


@pytest.mark.parametrize("width", [7, 13, 40])
def test_a_resized_terminal_keeps_no_rests(width):
    terminal = Terminal(width=21, height=30)
    view = LiveView(terminal)
    view.commit("before\n")
    view.show(cells("........................................"))
    terminal.screen.resize(width)
    view.show(cells("ab..."))
    assert terminal.screen.text == f"before\nab{MASK * 3}"
    view.commit("abcde")
    view.finish()
    assert terminal.screen.text == "before\nabcde"


def test_no_colour_means_none(monkeypatch):
    for variable, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        terminal = Terminal(color_system="truecolor", no_color=bool(variable))
        LiveView(terminal).show(cells("a."))
        colours = [n for style in terminal.screen.styles for n in style.split(";") if n and 30 <= int(n) < 110]
        assert bool(colours) == coloured


def test_control_characters_do_not_reach_the_terminal():
    assert printable("a\x1b[2Jb\r\n\tc\u202e") == "a\\x1b[2Jb\\x0d\n\tc\\x202e"
    terminal = Terminal()
    view = LiveView(terminal)
    view.commit("a\x1b[2J\n")
    view.show([Cell(1, "\x1b[31m", 0.9)])
    view.finish()
    assert terminal.screen.text == "a\\x1b[2J"


def test_a_whole_job(make_engine, capsys):  # noqa: F811
    terminal = Terminal(width=40, height=20)
    job = make_engine().submit("a few words", max_new_tokens=24)
    show_live(job, terminal)
    shown = terminal.screen.text.replace("\n", "")
    assert shown == printable(job.result().text).replace("\n", "").rstrip()
    assert "24 tokens in" in capsys.readouterr().err


def test_summary_has_units(make_engine):  # noqa: F811
    text = summary(make_engine().generate("a", max_new_tokens=8))
    assert "8 tokens in" in text and "tokens/s" in text and "stopped by length" in text
