"""What the window shows where there is no conversation yet: how to get a model, or that it is ready."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QFontDatabase
from PySide6.QtWidgets import QHBoxLayout, QVBoxLayout, QWidget

from engine_bridge import OpenModel
from widgets import button, label

MAKE_ONE = "dlm-edge export reference -o bundle"


class EmptyPage(QWidget):
    browse = Signal()
    open_path = Signal(Path)

    def __init__(self, recent: list[Path]) -> None:
        super().__init__()
        self.setObjectName("page")
        self.title, self.text = label("", "title"), label("", "quiet")
        self.command = label(MAKE_ONE, can_select=True)
        self.text.setAlignment(Qt.AlignmentFlag.AlignHCenter)
        self.command.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self.button = button("Open a folder …", self.browse.emit, is_primary=True)
        self.recent = QWidget()
        row = QHBoxLayout(self.recent)
        for path in recent[:3]:
            row.addWidget(button(path.name, self._open(path), help=str(path)))
        column = QVBoxLayout(self)
        column.setSpacing(18)
        column.addStretch(2)
        for widget in (self.title, self.text, self.command, self.button, self.recent):
            column.addWidget(widget, 0, Qt.AlignmentFlag.AlignHCenter)
        column.addStretch(3)
        self.show_closed()

    def show_closed(self) -> None:
        text = "A model is a folder that “dlm-edge export” wrote.\nA small one to try comes with the program:"
        self._show("Open a model", text, has_ways=True)

    def show_loading(self, path: Path) -> None:
        self._show(f"Loading {path.name}", str(path))

    def show_ready(self, model: OpenModel) -> None:
        does = "It answers, and you can ask on." if model.has_chat_template else "It continues what you write."
        text = f"{does}\nA reply begins as masks, which turn into words as the model grows sure of them."
        self._show(f"{model.path.name} is ready", text)

    def _show(self, title: str, text: str, *, has_ways: bool = False) -> None:
        self.title.setText(title)
        self.text.setText(text)
        for widget in (self.command, self.button, self.recent):
            widget.setVisible(has_ways)

    def _open(self, path: Path) -> Callable[[], None]:
        return lambda: self.open_path.emit(path)
