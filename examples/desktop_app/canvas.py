"""A reply as it comes into being: committed text, which only grows, and behind it the slots that are still open."""

from __future__ import annotations

from PySide6.QtCore import QSizeF, Qt
from PySide6.QtGui import QResizeEvent, QTextBlockFormat, QTextCharFormat, QTextCursor
from PySide6.QtWidgets import QFrame, QSizePolicy, QTextEdit

from cells import CELL, CELL_TYPE, CellPainter, cell_format
from dlm_edge.runtime import Frame
from theme import Theme, reading_font

LINE_HEIGHT = 120  # percent


class Canvas(QTextEdit):
    """Text that can be selected and copied. It is as high as what it holds, and never scrolls by itself."""

    def __init__(self, theme: Theme, stop_ids: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.setObjectName("answer")
        self.setAccessibleName("Reply")
        self.setReadOnly(True)
        self.setUndoRedoEnabled(False)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.document().setDocumentMargin(0)
        self.document().setDefaultFont(reading_font())
        spacing = QTextBlockFormat()
        spacing.setLineHeight(LINE_HEIGHT, QTextBlockFormat.LineHeightTypes.ProportionalHeight.value)
        self._cursor().setBlockFormat(spacing)
        self.document().documentLayout().registerHandler(CELL_TYPE, CellPainter(self, theme))
        self.document().documentLayout().documentSizeChanged.connect(self._fit)
        theme.changed.connect(self.viewport().update)
        self._committed = ""
        self._text_end = self._n_cells = 0
        self._stop_ids = stop_ids

    @property
    def committed(self) -> str:
        return self._committed

    @property
    def n_cells(self) -> int:
        """Slots that are shown behind the committed text."""
        return self._n_cells

    def commit(self, text: str) -> None:
        """Append for good. The slots it came from are gone with the next frame; until then they would show it twice."""
        self.show_frame(None)
        new = text if self._text_end else without_first_blank(text)
        self._committed += text
        cursor = self._cursor()
        cursor.insertText(shown(new), QTextCharFormat())
        self._text_end = cursor.position()

    def show_frame(self, frame: Frame | None) -> None:
        """Replace the slots by those of `frame`, or take them away."""
        cells = frame.cells if frame is not None else []
        cursor = self._cursor()
        cursor.beginEditBlock()
        cursor.setPosition(self._text_end, QTextCursor.MoveMode.KeepAnchor)
        cursor.removeSelectedText()
        for cell in cells:
            cursor.insertText(CELL, cell_format(cell, self._stop_ids))
            if cell.text is not None and "\n" in cell.text:  # what follows will stand on the next line, as it does here
                cursor.insertText(shown(cell.text[cell.text.index("\n") :]), QTextCharFormat())
        cursor.endEditBlock()
        self._n_cells = len(cells)
        placed = sum(cell.text is not None for cell in cells)
        described = (
            f"block {frame.block + 1} of {frame.n_blocks}, {placed} of {len(cells)} slots placed" if frame else ""
        )
        self.setAccessibleDescription(described)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._fit(self.document().size())

    def _cursor(self) -> QTextCursor:
        """At the end, and not the user's own: what is selected stays selected."""
        cursor = QTextCursor(self.document())
        cursor.movePosition(QTextCursor.MoveOperation.End)
        return cursor

    def _fit(self, size: QSizeF) -> None:
        height = max(int(size.height() + 1), self.fontMetrics().lineSpacing())
        if height != self.height():
            self.setFixedHeight(height)


def without_first_blank(text: str) -> str:
    """A reply often begins with the blank or the line that ends its prompt; an indentation is left as it is."""
    text = text.lstrip("\n")
    return text if text.startswith("  ") else text.removeprefix(" ")


def shown(text: str) -> str:
    """Control characters of a model's are shown, not obeyed; U+FFFC would be taken for a cell."""
    return "".join(c if c in "\n\t" or (c.isprintable() and c != CELL) else f"\\x{ord(c):02x}" for c in text)
