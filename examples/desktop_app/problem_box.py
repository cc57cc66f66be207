"""An error in the window: its code, what was found, and what to do."""

from __future__ import annotations

from PySide6.QtWidgets import QFrame, QVBoxLayout

from engine_bridge import Problem
from widgets import label


class ProblemBox(QFrame):
    """Its text can be selected, since people paste it where they ask for help."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.setObjectName("problem")
        self.problem = problem
        self.setAccessibleName(f"Error {problem.code}")
        self.setAccessibleDescription(f"{problem.message}. {problem.hint}")
        column = QVBoxLayout(self)
        column.setContentsMargins(16, 12, 16, 12)
        column.setSpacing(4)
        for text, name in ((problem.code, "code"), (problem.message, ""), (problem.hint, "quiet")):
            if text:
                column.addWidget(label(text, name, wraps=True, can_select=True))
