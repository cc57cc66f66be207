"""The desktop application, driven as a user would: a real window on a virtual display, real engines on tiny bundles.

On Qt's own virtual display by default; on any other with QT_QPA_PLATFORM=xcb xvfb-run -a python -m pytest tests/examples
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dlm_edge.runtime import Cell, Engine, Frame
from tests.tiny import make_checkpoint

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
pytest.importorskip("PySide6.QtWidgets", reason="needs PySide6: pip install 'dlm-edge[app]'", exc_type=ImportError)
APP = Path(__file__).parents[2] / "examples" / "desktop_app"
TIMEOUT_S = 60  # only a test that fails waits as long
LONG = {"max_new_tokens": "480", "min_new_tokens": "480", "sampler": "static"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the bundles `sdar` and `llada`, and `broken`, which is none."""
    export = pytest.importorskip("dlm_edge.export", reason="needs onnx").export
    made = tmp_path_factory.mktemp("models")
    for family in ("sdar", "llada"):
        export(str(make_checkpoint(made / f"{family}-checkpoint", family)), str(made / family))
    (made / "broken").mkdir()
    (made / "broken" / "manifest.json").write_text("{}")
    return made


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.syspath_prepend(str(APP))
        from PySide6.QtWidgets import QApplication

        yield QApplication.instance() or QApplication(["test"])


@pytest.fixture
def wait(app):
    """wait(condition): let the window work until it holds."""

    def until(condition):
        end = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < end, "it does not come about"
            app.processEvents()
            time.sleep(0.001)

    return until


@pytest.fixture
def window(app):
    from engine_bridge import EngineBridge
    from preferences import Preferences
    from theme import Theme
    from window import MainWindow

    bridge = EngineBridge(threads=1)
    made = MainWindow(bridge, Preferences(), Theme(app, "light"))
    made.show()
    yield made
    made.close()
    assert bridge.close(TIMEOUT_S)
    made.deleteLater()


@pytest.fixture
def opened(window, folder, wait):
    window.open_bundle(folder / "sdar")
    wait(lambda: window.model is not None)
    return window


def fill(window, settings):
    for name, value in settings.items():
        widget = window.settings.inputs[name]
        widget.setText(value) if hasattr(widget, "setText") else widget.setCurrentText(value)


def send(window, text, **settings):
    from PySide6.QtCore import Qt
    from PySide6.QtTest import QTest

    fill(window, settings)
    QTest.keyClicks(window.composer.editor, text)
    QTest.keyClick(window.composer.editor, Qt.Key.Key_Return)
    return window.conversation.turns[-1]


def test_a_reply_appears_in_the_canvas_and_then_as_text(opened, wait):
    frames, texts = [], []
    opened.bridge.frame.connect(lambda frame: frames.append((frame, opened.turn.canvas.n_cells)))
    opened.bridge.text.connect(lambda text: texts.append(opened.turn.canvas.committed))
    turn = send(opened, "Hello", **LONG | {"max_new_tokens": "120", "min_new_tokens": "120"})
    assert opened.composer.button.text() == "Stop" and not opened.composer.editor.toPlainText()
    wait(lambda: not opened.bridge.is_busy)
    assert any(0 < sum(c.text is not None for c in f.cells) < len(f.cells) for f, _ in frames)
    assert all(len(frame.cells) == shown for frame, shown in frames), "a frame replaces the one before"
    assert len(texts) > 3 and all(b.startswith(a) for a, b in zip(texts, texts[1:], strict=False))
    with Engine.open(opened.model.path, threads=1) as engine:
        values = {name: value for name, value in opened.settings.values().items()}
        assert turn.canvas.committed == engine.generate("Hello", **values).text
    assert turn.canvas.n_cells == 0 and "120 tokens" in turn.caption.text()
    assert "tokens/s" in opened.numbers.speed.text()
    opened.numbers.refresh()
    assert "weights" in opened.numbers.memory.text()


def test_esc_stops_and_keeps_the_text(opened, wait):
    from PySide6.QtCore import Qt
    from PySide6.QtTest import QTest

    turn = send(opened, "Hello", **LONG)
    wait(lambda: turn.canvas.committed)
    QTest.keyClick(opened.composer.editor, Qt.Key.Key_Escape)
    wait(lambda: not opened.bridge.is_busy)
    assert "stopped" in turn.caption.text() and turn.canvas.committed and turn.canvas.n_cells == 0
    assert opened.composer.button.text() == "Send"


def test_the_next_prompt_takes_the_conversation_along(opened, wait):
    said = "Hello to whoever reads this"
    first = send(opened, said, max_new_tokens="32", min_new_tokens="32")
    wait(lambda: not opened.bridge.is_busy)
    second = send(opened, " again", max_new_tokens="16", min_new_tokens="16")
    wait(lambda: not opened.bridge.is_busy)
    messages = [("user", said), ("assistant", first.canvas.committed), ("user", " again")]
    with Engine.open(opened.model.path, threads=1) as engine:
        prompt = [{"role": role, "content": content} for role, content in messages]
        assert second.canvas.committed == engine.generate(prompt, max_new_tokens=16, min_new_tokens=16).text
    assert "reused" in second.caption.text()
    opened.header.new.click()
    assert not opened.conversation.turns and opened.conversation.history() == []


def test_another_model_takes_over(opened, folder, wait):
    turn = send(opened, "Hello", **LONG)
    opened.open_bundle(folder / "llada")
    wait(lambda: opened.model.path.name == "llada" and not opened.bridge.is_busy)
    assert "stopped" in turn.caption.text() or "480 tokens" in turn.caption.text()
    assert opened.header.model.text().startswith("llada")
    opened.settings.reset()
    turn = send(opened, "Hello", max_new_tokens="16", min_new_tokens="16")
    wait(lambda: not opened.bridge.is_busy)
    assert turn.canvas.committed
    assert [path.name for path in opened.preferences.recent[:2]] == ["llada", "sdar"]


def test_a_broken_folder_leaves_the_old_model_open(opened, folder, wait):
    opened.open_bundle(folder / "broken")
    wait(lambda: opened.notices)
    problem = opened.notices[0].problem
    assert problem.code == "E-MANIFEST" and problem.message and problem.hint
    assert opened.model.path.name == "sdar" and opened.header.model.isEnabled()
    turn = send(opened, "Hello", max_new_tokens="16", min_new_tokens="16")
    wait(lambda: not opened.bridge.is_busy)
    assert turn.canvas.committed


def test_loading_does_not_hold_up_the_window(window, folder, wait, monkeypatch):
    from PySide6.QtTest import QTest

    may_open, real = threading.Event(), Engine.open
    monkeypatch.setattr(Engine, "open", lambda *args, **kw: may_open.wait(TIMEOUT_S) and real(*args, **kw))
    window.open_bundle(folder / "sdar")
    QTest.keyClicks(window.composer.editor, "Hello")
    assert window.composer.editor.toPlainText() == "Hello" and not window.composer.button.isEnabled()
    may_open.set()
    wait(lambda: window.composer.button.isEnabled())


def test_settings_that_cannot_be_are_said_at_once(opened):
    fill(opened, {"temperature": "-1"})
    assert opened.settings.problem.code == "E-PARAM" and "temperature" in opened.settings.problem.message
    opened.composer.editor.setPlainText("Hello")
    assert not opened.composer.button.isEnabled()
    fill(opened, {"temperature": "0.5", "sampler": "static", "attention": "quest"})
    assert opened.settings.problem is None and opened.composer.button.isEnabled()
    assert opened.settings.values() == {"temperature": 0.5, "sampler": "static", "attention": "quest"}


def visible_settings(panel):
    return {name for name, form in panel._forms.items() if form.isRowVisible(panel.inputs[name])}


def test_a_sampler_brings_its_own_settings(opened):
    from dlm_edge.runtime.samplers import SAMPLERS

    panel = opened.settings
    always = visible_settings(panel) - {"threshold", "steps"}
    for name, sampler in SAMPLERS.items():
        fill(opened, {"sampler": name})
        assert visible_settings(panel) - always == set(sampler.option_names), name
        assert panel.problem is None and panel.values() == {"sampler": name}
    fill(opened, {"sampler": "eb", "gamma": "0.3"})
    assert panel.inputs["rule"].placeholderText() == "sum"
    assert panel.values() == {"sampler": "eb", "sampler_options": {"gamma": 0.3}} and panel.problem is None
    fill(opened, {"gamma": "-1"})
    assert panel.problem.code == "E-PARAM" and "gamma" in panel.problem.message
    fill(opened, {"sampler": "adablock", "delimiters": "."})
    assert panel.values() == {"sampler": "adablock", "sampler_options": {"delimiters": (".",)}}
    assert panel.problem is None  # gamma is none of its settings


def test_what_the_engine_refuses_is_shown_and_the_prompt_put_back(opened, wait):
    from problem_box import ProblemBox

    turn = send(opened, "Hello", max_new_tokens="5000")
    wait(lambda: not opened.bridge.is_busy)
    assert turn.findChild(ProblemBox).problem.code == "E-CONTEXT"
    assert opened.composer.editor.toPlainText() == "Hello" and opened.conversation.history() == []


def test_every_setting_of_the_panel_is_one_of_the_engine(opened):
    from dlm_edge.runtime import GenerateSettings
    from sampler_fields import OWN

    assert set(opened.settings.inputs) <= {*GenerateSettings.__struct_fields__, *OWN}
    assert all(widget.accessibleName() for widget in opened.settings.inputs.values())


def test_frames_replace_each_other_and_leave_the_text_alone(app):
    from canvas import Canvas
    from theme import Theme

    canvas = Canvas(Theme(app, "light"), stop_ids=(9,))

    def frame(*cells):
        return Frame(step=1, block=0, n_blocks=1, committed_tokens=0, cells=[Cell(i, text, 0.5) for i, text in cells])

    canvas.commit(" def")
    canvas.show_frame(frame((None, None), (5, "):\n    "), (None, None), (9, "<|end|>")))
    assert canvas.toPlainText() == "def\ufffc\ufffc\n    \ufffc\ufffc" and canvas.n_cells == 4
    assert "2 of 4 slots placed" in canvas.accessibleDescription()
    canvas.show_frame(frame((None, None)))
    assert canvas.toPlainText() == "def\ufffc"
    canvas.commit(" f(\x1b\ufffc):")
    assert canvas.toPlainText() == "def f(\\x1b\\xfffc):" and canvas.committed == " def f(\x1b\ufffc):"


def test_dark_and_light(opened):
    background = opened.grab().toImage().pixelColor(500, 200)
    opened._choose_theme("dark")
    assert opened.grab().toImage().pixelColor(500, 200).lightness() < background.lightness()
    assert opened.preferences.theme == "dark"


AMID_A_REPLY = """
def begin(self):
    for name, value in {settings!r}.items():
        widget = self.settings.inputs[name]
        widget.setText(value) if hasattr(widget, "setText") else widget.setCurrentText(value)
    self.bridge.opened.connect(lambda model: self.send("Hello"))
    self.bridge.frame.connect(lambda frame: self.close())
"""
WHILE_LOADING = """
import threading
from PySide6.QtCore import QTimer
from dlm_edge.runtime import Cell, Engine, Frame
Engine.open = lambda *args, **options: threading.Event().wait()
main.CLOSE_TIMEOUT_S = 0.1
def begin(self):
    QTimer.singleShot(100, self.close)
"""
QUIT = """
import sys
sys.path.insert(0, {app!r})
import main, window
{when}
real = window.MainWindow.__init__
def init(self, *args):
    real(self, *args)
    begin(self)
window.MainWindow.__init__ = init
sys.argv = ["app", {bundle!r}, "--threads", "1"]
sys.exit(main.main())
"""


@pytest.mark.parametrize("when", [AMID_A_REPLY.format(settings=LONG), WHILE_LOADING], ids=["reply", "loading"])
def test_quitting_ends_the_process(folder, app, tmp_path, when):
    script = QUIT.format(app=str(APP), when=when, bundle=str(folder / "sdar"))
    env = {**os.environ, "PYTHONPATH": path_with_root(), "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_once_prints_the_reply(folder, app, tmp_path):
    """What package.py asks of a packaged build."""
    env = {**os.environ, "PYTHONPATH": path_with_root(), "XDG_CONFIG_HOME": str(tmp_path)}
    command = [sys.executable, str(APP / "main.py"), "--threads", "1", "--prompt", "Hello", "--once"]
    how = {"env": env, "capture_output": True, "encoding": "utf-8", "timeout": TIMEOUT_S}
    done = subprocess.run([*command, str(folder / "sdar")], **how)
    with Engine.open(folder / "sdar", threads=1) as engine:
        text = engine.generate("Hello").text + "\n"
    assert done.stdout == text.replace("\r\n", "\n").replace("\r", "\n") and done.returncode == 0
    broken = subprocess.run([*command, str(folder / "broken")], **how)
    assert broken.returncode == 1 and "E-MANIFEST" in broken.stderr


def path_with_root():
    return os.pathsep.join([str(APP.parents[1]), os.environ.get("PYTHONPATH", "")])
