"""One slot of the canvas as Qt lays it out inside running text: a rounded cell, empty for a mask, with a word in it for a
token, the stronger coloured the surer the model is."""

from __future__ import annotations

from PySide6.QtCore import QObject, QRect, QRectF, QSizeF, Qt
from PySide6.QtGui import QColor, QFontMetricsF, QPainter, QPyTextObject, QTextCharFormat, QTextDocument, QTextFormat

from dlm_edge.runtime import Cell
from theme import Theme

CELL_TYPE = QTextFormat.ObjectTypes.UserObject.value + 1
TOKEN_TEXT = QTextFormat.Property.UserProperty.value + 1  # absent: a mask
CONFIDENCE = QTextFormat.Property.UserProperty.value + 2
LEVELS = 32  # of confidence: a document keeps every format it has seen, so there must not be too many
CELL = "\N{OBJECT REPLACEMENT CHARACTER}"  # what stands in the text where a cell is
SHOWN = {"\n": "↵", "\t": "⇥", "\r": "␍", " ": "␣"}  # in tokens of nothing but white space
END = "■"  # for a token that ends the text
PADDING, GAP, MASK_EMS = 5.0, 4.0, 1.9


class CellPainter(QPyTextObject):
    """Registered once with the document; Qt asks it for the size of every cell and then to draw it."""

    def __init__(self, parent: QObject, theme: Theme) -> None:
        super().__init__(parent)
        self.theme = theme

    def intrinsicSize(self, doc: QTextDocument, posInDocument: int, format: QTextFormat) -> QSizeF:
        metrics, text = QFontMetricsF(doc.defaultFont()), text_of(format)
        em = metrics.horizontalAdvance("n")
        width = MASK_EMS * em if text is None else max(metrics.horizontalAdvance(label(text)), em)
        return QSizeF(width + 2 * PADDING + GAP, metrics.height() + 4)

    def drawObject(
        self, painter: QPainter, rect: QRectF | QRect, doc: QTextDocument, posInDocument: int, format: QTextFormat
    ) -> None:
        text, confidence, colours = text_of(format), format.intProperty(CONFIDENCE) / LEVELS, self.theme.colours
        box = QRectF(rect).adjusted(GAP / 2, 1, -GAP / 2, -1)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(colours.shade(confidence))
        painter.drawRoundedRect(box, 5, 5)
        if text is None:
            painter.setBrush(colours.shade(1.0))
            painter.drawEllipse(box.center(), 2, 2)
        else:
            painter.setFont(doc.defaultFont())
            painter.setPen(QColor(colours.text))
            painter.drawText(box, Qt.AlignmentFlag.AlignCenter, label(text))
        painter.restore()


def cell_format(cell: Cell, stop_ids: tuple[int, ...] = ()) -> QTextCharFormat:
    made = QTextCharFormat()
    made.setObjectType(CELL_TYPE)
    if cell.text is not None:
        made.setProperty(TOKEN_TEXT, END if cell.token_id in stop_ids else cell.text)
    made.setProperty(CONFIDENCE, round(LEVELS * cell.confidence))
    made.setVerticalAlignment(QTextCharFormat.VerticalAlignment.AlignBottom)
    return made


def text_of(format: QTextFormat) -> str | None:
    return format.stringProperty(TOKEN_TEXT) if format.hasProperty(TOKEN_TEXT) else None


def label(text: str) -> str:
    """Without leading blanks, which the gap between cells shows already; of white space alone, what kind it is."""
    if text.strip():
        return "".join(SHOWN[c] if c in SHOWN and c != " " else c for c in text.strip(" "))
    return "".join(dict.fromkeys(SHOWN.get(c, c) for c in text if c != " ")) or SHOWN[" "]
