"""Labels, buttons and inputs as the rest of the window uses them. Object names are those of the style sheet."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from PySide6.QtCore import Qt
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QCheckBox, QComboBox, QLabel, QPushButton, QStyle, QStyleOptionButton, QWidget

T = TypeVar("T", bound=QWidget)


def named(widget: T, name: str) -> T:
    widget.setObjectName(name)
    return widget


def label(text: str = "", name: str = "", *, wraps: bool = False, can_select: bool = False) -> QLabel:
    """Never taken for HTML: what a label shows may come from a file or a model."""
    made = named(QLabel(text, wordWrap=wraps, textFormat=Qt.TextFormat.PlainText), name)
    if can_select:
        made.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return made


def button(text: str, on_click: Callable[[], object], *, is_primary: bool = False, help: str = "") -> QPushButton:
    made = QPushButton(text)
    made.clicked.connect(lambda checked=False: on_click())
    made.setProperty("primary", is_primary)
    made.setToolTip(help)
    return made


class Choice(QComboBox):
    """With an arrow in the text's colour: a style sheet takes the native one away, and offers image files instead."""

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        area = self.rect().adjusted(0, 0, -10, 0)
        QPainter(self).drawText(area, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, "▾")


class Tick(QCheckBox):
    """With its mark, for the same reason."""

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        if self.isChecked():
            option = QStyleOptionButton()
            self.initStyleOption(option)
            area = self.style().subElementRect(QStyle.SubElement.SE_CheckBoxIndicator, option, self)
            painter = QPainter(self)
            painter.setPen(self.palette().highlightedText().color())
            painter.drawText(area, Qt.AlignmentFlag.AlignCenter, "✓")
