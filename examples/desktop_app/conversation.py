"""The column of prompts and replies, and the history that the next prompt is sent with."""

from __future__ import annotations

from PySide6.QtCore import QRect, Qt, QTimer
from PySide6.QtWidgets import QFrame, QHBoxLayout, QScrollArea, QVBoxLayout, QWidget

from canvas import Canvas, shown
from dlm_edge.runtime import Frame, Result
from engine_bridge import Problem
from problem_box import ProblemBox
from theme import Theme, reading_font
from widgets import label, named

COLUMN_WIDTH, BUBBLE_WIDTH = 780, 520
STOP_REASONS = {"length": "reached its length", "cancelled": "stopped", "stop": "met a stop string"}


class Bubble(QFrame):
    """As wide as its text needs, up to a limit from which on it wraps."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.setObjectName("prompt")
        said = label(text, wraps=True, can_select=True)
        said.setFont(reading_font())
        said.setAccessibleName("Prompt")
        room = QRect(0, 0, BUBBLE_WIDTH, 1 << 20)
        needed = said.fontMetrics().boundingRect(room, int(Qt.TextFlag.TextWordWrap), text).size()
        said.setFixedSize(needed.width() + 4, needed.height() + 2)
        row = QHBoxLayout(self)
        row.setContentsMargins(16, 9, 14, 10)
        row.addWidget(said)


class Turn(QWidget):
    """A prompt and its reply."""

    def __init__(self, prompt: str, theme: Theme, stop_ids: tuple[int, ...]) -> None:
        super().__init__()
        self.prompt = prompt
        self.canvas = Canvas(theme, stop_ids)
        self.caption = label("waiting", "quiet")
        row = QHBoxLayout()
        row.addStretch(1)
        row.addWidget(Bubble(shown(prompt)))
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(12)
        self._column.addLayout(row)
        self._column.addWidget(self.canvas)
        self._column.addWidget(self.caption)

    def show_frame(self, frame: Frame) -> None:
        self.canvas.show_frame(frame)
        self.caption.setText(f"block {frame.block + 1} of {frame.n_blocks}  ·  step {frame.step}")

    def finish(self, result: Result) -> None:
        self.canvas.show_frame(None)
        said = [f"{result.new_tokens} tokens in {result.seconds:.2f} s"]
        if result.steps_per_token is not None:
            said.append(f"{result.steps_per_token:.2f} steps per token")
        if result.reused_tokens:
            said.append(f"{result.reused_tokens} of {result.prompt_tokens} prompt tokens reused")
        if result.stop_reason in STOP_REASONS:
            said.append(STOP_REASONS[result.stop_reason])
        self.caption.setText("  ·  ".join(said))

    def fail(self, problem: Problem) -> None:
        self.canvas.show_frame(None)
        self.canvas.setVisible(bool(self.canvas.committed))
        self.caption.hide()
        self._column.addWidget(ProblemBox(problem))


class Conversation(QScrollArea):
    """Follows the text as it grows, unless the user has scrolled up to read."""

    def __init__(self, theme: Theme) -> None:
        super().__init__(widgetResizable=True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setAccessibleName("Conversation")
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self._theme = theme
        self.turns: list[Turn] = []
        page, column = named(QWidget(), "conversation"), QWidget(maximumWidth=COLUMN_WIDTH)
        outer = QHBoxLayout(page)
        outer.setContentsMargins(28, 28, 28, 16)
        outer.addStretch(1)
        outer.addWidget(column, 1000)
        outer.addStretch(1)
        self._column = QVBoxLayout(column)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(32)
        self._column.addStretch(1)
        self.setWidget(page)
        self._follows = True
        self.verticalScrollBar().valueChanged.connect(self._note_where)
        self.verticalScrollBar().rangeChanged.connect(self._follow)

    def add_turn(self, prompt: str, stop_ids: tuple[int, ...] = ()) -> Turn:
        turn = Turn(prompt, self._theme, stop_ids)
        self.turns.append(turn)
        self._column.insertWidget(self._column.count() - 1, turn)
        self._follows = True
        QTimer.singleShot(0, self, self._follow)
        return turn

    def clear(self) -> None:
        for turn in self.turns:
            turn.deleteLater()
        self.turns = []

    def history(self) -> list[dict[str, str]]:
        """Prompts that were answered, with their answers: templates expect the two in turns."""
        messages = []
        for turn in self.turns:
            if turn.canvas.committed:
                messages.append({"role": "user", "content": turn.prompt})
                messages.append({"role": "assistant", "content": turn.canvas.committed})
        return messages

    def _note_where(self, value: int) -> None:
        self._follows = value >= self.verticalScrollBar().maximum() - 4

    def _follow(self) -> None:
        if self._follows:
            self.verticalScrollBar().setValue(self.verticalScrollBar().maximum())
