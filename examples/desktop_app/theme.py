"""Light and dark: one set of named colours for each, and the style sheet that is made of them."""

from __future__ import annotations

from dataclasses import dataclass

from PySide6.QtCore import QObject, Qt, Signal
from PySide6.QtGui import QColor, QFont, QFontDatabase, QPalette
from PySide6.QtWidgets import QApplication

CHOICES = ("system", "light", "dark")


@dataclass(frozen=True, slots=True, kw_only=True)
class Colours:
    is_dark: bool
    window: str  # behind everything
    surface: str  # fields, side panel
    raised: str  # what lies on a surface: hovered buttons, bubbles
    line: str
    text: str
    quiet: str  # captions
    accent: str
    on_accent: str
    danger: str

    def shade(self, strength: float) -> QColor:
        """The accent, the stronger the surer the model is; never quite invisible."""
        colour = QColor(self.accent)
        colour.setAlphaF(0.08 + 0.5 * max(0.0, min(strength, 1.0)))
        return colour


LIGHT = Colours(
    is_dark=False, window="#ffffff", surface="#f6f6f8", raised="#ececf1", line="#e2e2e8", text="#1c1c22",
    quiet="#6b6b78", accent="#5b54e0", on_accent="#ffffff", danger="#b3261e",
)  # fmt: skip
DARK = Colours(
    is_dark=True, window="#17171b", surface="#1f1f25", raised="#2b2b33", line="#34343d", text="#ececf1",
    quiet="#9c9caa", accent="#8f89ff", on_accent="#14141a", danger="#ff8a80",
)  # fmt: skip


class Theme(QObject):
    """Follows the system until the user chooses. Widgets that paint themselves listen to `changed`."""

    changed = Signal()

    def __init__(self, app: QApplication, choice: str = "system") -> None:
        super().__init__(app)
        self.choice, self._app = choice, app
        app.setStyle("Fusion")  # the one style that obeys a palette on every system
        app.setFont(readable_font(app.font()))
        app.styleHints().colorSchemeChanged.connect(self._apply)
        self._apply()

    @property
    def colours(self) -> Colours:
        if self.choice == "system":
            return DARK if self._app.styleHints().colorScheme() == Qt.ColorScheme.Dark else LIGHT
        return DARK if self.choice == "dark" else LIGHT

    def choose(self, choice: str) -> None:
        self.choice = choice
        self._apply()

    def _apply(self) -> None:
        colours = self.colours
        self._app.setPalette(palette(colours))
        self._app.setStyleSheet(style_sheet(colours))
        self.changed.emit()


def readable_font(font: QFont) -> QFont:
    """The system's own font; where that is only a generic name (bare X11), the best of those installed."""
    if font.family().lower() in ("sans serif", "sans-serif", "sans", ""):
        installed = set(QFontDatabase.families())
        good = [name for name in ("Inter", "Cantarell", "Noto Sans", "DejaVu Sans") if name in installed]
        font.setFamilies([*good, font.family()])
    font.setPointSizeF(max(font.pointSizeF(), 10.0))
    font.setFeature(QFont.Tag("calt"), 0)  # "=>" must not become an arrow: people see what they wrote
    return font


def reading_font() -> QFont:
    """Of prompts and replies."""
    font = QApplication.font()
    font.setPointSizeF(font.pointSizeF() * 1.15)
    return font


def palette(c: Colours) -> QPalette:
    made, role = QPalette(), QPalette.ColorRole
    for name, colour in {
        role.Window: c.window, role.Base: c.window, role.AlternateBase: c.surface, role.Button: c.surface,
        role.ToolTipBase: c.raised, role.WindowText: c.text, role.Text: c.text, role.ButtonText: c.text,
        role.ToolTipText: c.text, role.PlaceholderText: c.quiet, role.Highlight: c.accent,
        role.HighlightedText: c.on_accent, role.Link: c.accent,
    }.items():  # fmt: skip
        made.setColor(name, QColor(colour))
    for name in (role.WindowText, role.Text, role.ButtonText):
        made.setColor(QPalette.ColorGroup.Disabled, name, QColor(c.quiet))
    return made


def style_sheet(c: Colours) -> str:
    return f"""
    QWidget {{ color: {c.text}; }}
    QMainWindow, QScrollArea, #conversation, #page {{ background: {c.window}; border: none; }}
    QToolTip {{ background: {c.raised}; color: {c.text}; border: 1px solid {c.line}; padding: 4px; }}
    #header {{ background: {c.window}; border-bottom: 1px solid {c.line}; }}
    #panel {{ background: {c.surface}; border-left: 1px solid {c.line}; }}
    #panel QScrollArea, #panel QScrollArea > QWidget > QWidget {{ background: {c.surface}; }}
    #title {{ font-size: 19pt; font-weight: 600; }}
    #section {{ color: {c.quiet}; font-weight: 600; }}
    #quiet, QStatusBar QLabel {{ color: {c.quiet}; }}
    #code {{ color: {c.danger}; font-weight: 600; }}
    #prompt {{ background: {c.raised}; border-radius: 14px; }}
    #problem {{ background: {c.surface}; border: 1px solid {c.danger}; border-radius: 10px; }}
    #answer {{ background: transparent; border: none; }}
    #composer {{ background: {c.surface}; border: 1px solid {c.line}; border-radius: 14px; }}
    #composer[focused="true"] {{ border-color: {c.accent}; }}
    #composer QPlainTextEdit {{ background: transparent; border: none; padding: 0; }}
    QStatusBar {{ background: {c.window}; border-top: 1px solid {c.line}; }}
    QStatusBar::item {{ border: none; }}
    QPushButton, QToolButton {{ background: transparent; border: 1px solid {c.line}; border-radius: 8px; padding: 6px 12px; }}
    QPushButton:hover, QToolButton:hover {{ background: {c.raised}; }}
    QPushButton:focus, QToolButton:focus {{ border-color: {c.accent}; }}
    QPushButton:disabled {{ color: {c.quiet}; }}
    QToolButton[plain="true"], QPushButton[plain="true"] {{ border-color: transparent; }}
    QToolButton[plain="true"]:focus {{ border-color: {c.accent}; }}
    QToolButton:checked {{ background: {c.raised}; }}
    QToolButton::menu-indicator {{ image: none; }}
    QPushButton[primary="true"] {{ background: {c.accent}; color: {c.on_accent}; border-color: {c.accent}; font-weight: 600; }}
    QPushButton[primary="true"]:disabled {{ background: {c.raised}; color: {c.quiet}; border-color: {c.raised}; }}
    QLineEdit, QComboBox {{ background: {c.window}; border: 1px solid {c.line}; border-radius: 8px; padding: 5px 9px; }}
    QLineEdit:focus, QComboBox:focus {{ border-color: {c.accent}; }}
    QComboBox::drop-down {{ border: none; width: 22px; }}
    QComboBox QAbstractItemView {{ background: {c.surface}; border: 1px solid {c.line}; selection-background-color: {c.raised};
        selection-color: {c.text}; outline: none; padding: 4px; }}
    QCheckBox {{ spacing: 10px; }}
    QCheckBox::indicator {{ width: 14px; height: 14px; border: 1px solid {c.quiet}; border-radius: 4px; background: {c.window}; }}
    QCheckBox::indicator:checked {{ background: {c.accent}; border-color: {c.accent}; }}
    QCheckBox:focus {{ color: {c.accent}; }}
    QMenu {{ background: {c.surface}; border: 1px solid {c.line}; padding: 6px; }}
    QMenu::item {{ padding: 6px 18px; border-radius: 6px; }}
    QMenu::item:selected {{ background: {c.raised}; }}
    QMenu::item:disabled {{ color: {c.quiet}; }}
    QMenu::separator {{ height: 1px; background: {c.line}; margin: 6px 4px; }}
    QScrollBar:vertical {{ background: transparent; width: 10px; margin: 2px; }}
    QScrollBar::handle:vertical {{ background: {c.line}; border-radius: 3px; min-height: 32px; }}
    QScrollBar::add-line, QScrollBar::sub-line, QScrollBar::add-page, QScrollBar::sub-page {{ background: none; height: 0; }}
    """
