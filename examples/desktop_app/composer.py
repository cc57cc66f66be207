"""Where the prompt is written. Enter sends, Shift+Enter begins a new line."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QFocusEvent, QKeyEvent, QTextCursor
from PySide6.QtWidgets import QFrame, QHBoxLayout, QPlainTextEdit, QVBoxLayout

from theme import reading_font
from widgets import button

MAX_LINES = 8


class Editor(QPlainTextEdit):
    entered = Signal()
    focus_changed = Signal(bool)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        is_enter = event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter)
        if is_enter and not event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
            self.entered.emit()
        else:
            super().keyPressEvent(event)

    def focusInEvent(self, event: QFocusEvent) -> None:
        super().focusInEvent(event)
        self.focus_changed.emit(True)

    def focusOutEvent(self, event: QFocusEvent) -> None:
        super().focusOutEvent(event)
        self.focus_changed.emit(False)


class Composer(QFrame):
    send = Signal(str)
    stop = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("composer")
        self.editor = Editor(placeholderText="Write a prompt")
        self.editor.setAccessibleName("Prompt")
        self.editor.setFont(reading_font())
        self.editor.setTabChangesFocus(True)
        self.editor.document().setDocumentMargin(2)
        self.button = button("Send", self._press, is_primary=True)
        self.button.setMinimumWidth(84)
        row = QHBoxLayout(self)
        row.setContentsMargins(16, 12, 12, 12)
        row.setSpacing(12)
        row.addWidget(self.editor, 1)
        side = QVBoxLayout()
        side.addStretch(1)
        side.addWidget(self.button)
        row.addLayout(side)
        self._can_send = self._is_busy = False
        self.editor.entered.connect(self._enter)
        self.editor.focus_changed.connect(self._show_focus)
        self.editor.textChanged.connect(self._refresh)
        self.editor.document().documentLayout().documentSizeChanged.connect(self._refresh)
        self._refresh()

    def set_state(self, *, can_send: bool, is_busy: bool) -> None:
        self._can_send, self._is_busy = can_send, is_busy
        self._refresh()

    def put_back(self, text: str) -> None:
        """A prompt that was refused, unless the next one is being written already."""
        if not self.editor.toPlainText():
            self.editor.setPlainText(text)
            self.editor.moveCursor(QTextCursor.MoveOperation.End)

    def _press(self) -> None:
        if self._is_busy:
            self.stop.emit()
        else:
            self._enter()

    def _enter(self) -> None:
        text = self.editor.toPlainText()
        if self._can_send and not self._is_busy and text.strip():
            self.editor.clear()
            self.send.emit(text)

    def _refresh(self) -> None:
        self.button.setText("Stop" if self._is_busy else "Send")
        self.button.setToolTip("Esc" if self._is_busy else "Enter; Shift+Enter begins a new line")
        self.button.setEnabled(self._is_busy or (self._can_send and bool(self.editor.toPlainText().strip())))
        lines = min(max(self.editor.document().size().height(), 1), MAX_LINES)
        self.editor.setFixedHeight(int(lines * self.editor.fontMetrics().lineSpacing()) + 6)

    def _show_focus(self, has_focus: bool) -> None:
        self.setProperty("focused", has_focus)
        self.style().unpolish(self)
        self.style().polish(self)
