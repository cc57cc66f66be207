"""The main window: it puts the parts together, and says what happens when."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import Qt
from PySide6.QtGui import QCloseEvent, QKeyEvent, QKeySequence
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QMainWindow, QStackedWidget, QVBoxLayout, QWidget

from composer import Composer
from conversation import COLUMN_WIDTH, Conversation, Turn
from dlm_edge.runtime import Finished, Frame, Started
from empty_page import EmptyPage
from engine_bridge import EngineBridge, OpenModel, Problem
from header import Header, shortcut
from numbers_bar import NumbersBar
from preferences import Preferences
from problem_box import ProblemBox
from settings_panel import SettingsPanel
from theme import Theme
from widgets import named


class MainWindow(QMainWindow):
    def __init__(self, bridge: EngineBridge, preferences: Preferences, theme: Theme) -> None:
        super().__init__()
        self.setWindowTitle("dlm-edge")
        self.resize(1120, 800)
        self.bridge, self.preferences, self.theme = bridge, preferences, theme
        self.model: OpenModel | None = None
        self.turn: Turn | None = None  # whose reply is being written
        self.notices: list[ProblemBox] = []
        self._opening: Path | None = None
        self.header = Header(lambda: preferences.recent, theme.choice)
        self.conversation, self.composer = Conversation(theme), Composer()
        self.empty = EmptyPage(preferences.recent)
        self.settings, self.numbers = SettingsPanel(), NumbersBar(bridge)
        self._arrange()
        self._connect()
        self._refresh()

    def open_bundle(self, path: Path) -> None:
        if self._opening is not None:
            return
        self._opening = path = path.absolute()
        for box in self.notices:
            box.deleteLater()
        self.notices = []
        self.numbers.state.setText(f"loading {path.name} …")
        if self.model is None:
            self.empty.show_loading(path)
        self._refresh()
        self.bridge.open(path)

    def send(self, text: str) -> None:
        """The earlier turns go along: the engine reuses what it stored of them, and computes only what is new."""
        assert self.model is not None
        messages = self.conversation.history() if self.settings.sends_history.isChecked() else []
        messages.append({"role": "user", "content": text})
        self.turn = self.conversation.add_turn(text, self.model.stop_ids)
        # Without a template there are no roles, only text to be continued.
        self.bridge.generate(messages if self.model.has_chat_template else text, self.settings.values())
        self._refresh()

    def new_chat(self) -> None:
        if self.bridge.is_busy:
            self.bridge.stop()
        self.turn = None
        self.conversation.clear()
        self._refresh()

    def closeEvent(self, event: QCloseEvent) -> None:
        self.bridge.stop()  # the rest is done after the event loop, with the window gone
        event.accept()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """What the widget with the focus has no use for comes here: a menu that is open closes at Esc first."""
        if event.key() == Qt.Key.Key_Escape:
            self.bridge.stop()
        else:
            super().keyPressEvent(event)

    def _arrange(self) -> None:
        self._pages = QStackedWidget()
        self._pages.addWidget(self.empty)
        self._pages.addWidget(self.conversation)
        notices = QWidget(maximumWidth=COLUMN_WIDTH)
        self._notices = QVBoxLayout(notices)
        self._notices.setContentsMargins(0, 0, 0, 0)
        self.composer.setMaximumWidth(COLUMN_WIDTH)
        bottom = QHBoxLayout()
        bottom.setContentsMargins(28, 0, 28, 20)
        bottom.addStretch(1)
        middle = QVBoxLayout()
        middle.setSpacing(12)
        middle.addWidget(notices)
        middle.addWidget(self.composer)
        bottom.addLayout(middle, 1000)
        bottom.addStretch(1)
        left = QVBoxLayout()
        left.setSpacing(0)
        left.addWidget(self._pages, 1)
        left.addLayout(bottom)
        body = QHBoxLayout()
        body.setSpacing(0)
        body.addLayout(left, 1)
        body.addWidget(self.settings)
        page = named(QWidget(), "page")
        whole = QVBoxLayout(page)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.setSpacing(0)
        whole.addWidget(self.header)
        whole.addLayout(body, 1)
        self.setCentralWidget(page)
        self.setStatusBar(self.numbers)
        self.settings.hide()

    def _connect(self) -> None:
        bridge, header = self.bridge, self.header
        bridge.opened.connect(self._show_opened)
        bridge.open_failed.connect(self._show_open_failed)
        bridge.started.connect(self._show_started)
        bridge.text.connect(self._show_text)
        bridge.frame.connect(self._show_frame)
        bridge.finished.connect(self._show_finished)
        bridge.failed.connect(self._show_failed)
        self.composer.send.connect(self.send)
        self.composer.stop.connect(bridge.stop)
        self.settings.changed.connect(self._refresh)
        for source in (header, self.empty):
            source.open_path.connect(self.open_bundle)
            source.browse.connect(self._browse)
        header.new_chat.connect(self.new_chat)
        header.settings.toggled.connect(self.settings.setVisible)
        header.theme_chosen.connect(self._choose_theme)
        shortcut(self, QKeySequence(QKeySequence.StandardKey.Quit), self.close)

    def _browse(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Open a bundle's folder")
        if folder:
            self.open_bundle(Path(folder))

    def _choose_theme(self, choice: str) -> None:
        self.preferences.theme = choice
        self.theme.choose(choice)

    def _show_opened(self, model: OpenModel) -> None:
        self._opening, self.model = None, model
        self.preferences.remember(model.path)
        self.header.show_model(model.path.name)
        self.numbers.state.setText(f"{model.path.name}  ·  {model.family} on {model.device}")
        self.empty.show_ready(model)
        self._refresh()
        self.composer.editor.setFocus()

    def _show_open_failed(self, problem: Problem) -> None:
        self._opening = None
        if self.model is None:
            self.numbers.state.setText("no model open")
            self.empty.show_closed()
        else:
            self.numbers.state.setText(f"{self.model.path.name}  ·  {self.model.family} on {self.model.device}")
        self.notices.append(ProblemBox(problem))
        self._notices.addWidget(self.notices[-1])
        self._refresh()

    def _show_started(self, started: Started) -> None:
        if self.turn is not None:
            self.turn.caption.setText(f"reading {started.prompt_tokens} tokens")

    def _show_text(self, text: str) -> None:
        if self.turn is not None:
            self.turn.canvas.commit(text)

    def _show_frame(self, frame: Frame) -> None:
        if self.turn is not None:
            self.turn.show_frame(frame)

    def _show_finished(self, event: Finished) -> None:
        self.numbers.show_speed(event.result)
        if self.turn is not None:
            self.turn.finish(event.result)
        self.turn = None
        self._refresh()

    def _show_failed(self, problem: Problem) -> None:
        if self.turn is not None:
            self.turn.fail(problem)
            self.composer.put_back(self.turn.prompt)
        self.turn = None
        self._refresh()

    def _refresh(self) -> None:
        self._pages.setCurrentWidget(self.conversation if self.conversation.turns else self.empty)
        can_send = self.model is not None and self.settings.problem is None
        self.composer.set_state(can_send=can_send, is_busy=self.bridge.is_busy)
        self.header.model.setEnabled(self._opening is None)
