"""The row at the top: which model is open, others to open, and the window's own buttons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QAction, QActionGroup, QKeySequence
from PySide6.QtWidgets import QFrame, QHBoxLayout, QMenu, QToolButton, QWidget

from theme import CHOICES

THEME_LABELS = {"system": "As the system", "light": "Light", "dark": "Dark"}


class Header(QFrame):
    """`recent` gives the bundles opened lately, each time the menu is opened."""

    open_path = Signal(Path)
    browse = Signal()
    new_chat = Signal()
    theme_chosen = Signal(str)

    def __init__(self, recent: Callable[[], list[Path]], theme: str) -> None:
        super().__init__()
        self.setObjectName("header")
        self._recent = recent
        self.model = self._button("Open a model", "The model that is open; others to open")
        self.model.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextOnly)
        self.model.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self._models = QMenu(self.model)
        self._models.aboutToShow.connect(self._fill_models)
        self.model.setMenu(self._models)
        self.new = self._button("New chat", "Forget the conversation", plain=True)
        self.new.clicked.connect(self.new_chat)
        self.theme = self._button("Theme", "Light or dark", plain=True)
        self.theme.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.theme.setMenu(self._theme_menu(theme))
        self.settings = self._button("Settings", "Show or hide the settings", plain=True)
        self.settings.setCheckable(True)
        row = QHBoxLayout(self)
        row.setContentsMargins(20, 10, 20, 10)
        row.setSpacing(6)
        row.addWidget(self.model)
        row.addStretch(1)
        for widget in (self.new, self.theme, self.settings):
            row.addWidget(widget)
        shortcut(self, QKeySequence(QKeySequence.StandardKey.Open), self.browse.emit, self.model)
        shortcut(self, QKeySequence(QKeySequence.StandardKey.New), self.new_chat.emit, self.new)
        shortcut(self, QKeySequence("Ctrl+,"), self.settings.toggle, self.settings)

    def show_model(self, text: str) -> None:
        self.model.setText(f"{text}  ▾")
        self.model.setAccessibleDescription(text)

    def _fill_models(self) -> None:
        self._models.clear()
        for path in self._recent():
            action = self._models.addAction(f"{path.name}    {path.parent}")
            action.triggered.connect(lambda checked=False, path=path: self.open_path.emit(path))
        if not self._models.isEmpty():
            self._models.addSeparator()
        self._models.addAction("Open a bundle's folder …", self.browse.emit)

    def _theme_menu(self, chosen: str) -> QMenu:
        menu, group = QMenu(self), QActionGroup(self)
        for choice in CHOICES:
            action = QAction(THEME_LABELS[choice], group, checkable=True, checked=choice == chosen)
            action.triggered.connect(lambda checked=False, choice=choice: self.theme_chosen.emit(choice))
            menu.addAction(action)
        return menu

    def _button(self, text: str, help: str, *, plain: bool = False) -> QToolButton:
        button = QToolButton()
        button.setText(text)
        button.setToolTip(help)
        button.setAccessibleName(text)
        button.setProperty("plain", plain)
        return button


def shortcut(owner: QWidget, keys: QKeySequence, call: Callable[[], object], button: QWidget | None = None) -> None:
    """For the whole window; the button that does the same names it in its tooltip."""
    action = QAction(owner)
    action.triggered.connect(lambda checked=False: call())
    action.setShortcut(keys)
    action.setShortcutContext(Qt.ShortcutContext.WindowShortcut)
    owner.addAction(action)
    if button is not None:
        button.setToolTip(f"{button.toolTip()} ({keys.toString(QKeySequence.SequenceFormat.NativeText)})")
