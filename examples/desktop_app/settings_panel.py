"""What may be asked of one generation: fields of GenerateSettings, checked by GenerateSettings.

The panel has no rules of its own. An empty field is not sent, so the bundle's default holds; a sampler's or an
attention policy's own settings are shown while it is chosen, by the runtime's tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import (
    QComboBox,
    QFormLayout,
    QFrame,
    QLabel,
    QLineEdit,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime import GenerateSettings
from dlm_edge.runtime.attention import POLICIES
from dlm_edge.runtime.samplers import SAMPLERS
from engine_bridge import Problem
from problem_box import ProblemBox
from sampler_fields import OWN, SHARED, as_list, check, default, has, shown
from widgets import Choice, Tick, button, label

DEFAULT = "default"  # of the bundle, or of the runtime where it names none
LABEL_WIDTH = 92


@dataclass(frozen=True, slots=True)
class Field:
    name: str  # of GenerateSettings
    label: str
    help: str


SECTIONS: dict[str, tuple[Field, ...]] = {
    "Text": (
        Field("max_new_tokens", "Most tokens", "The reply ends there at the latest"),
        Field("min_new_tokens", "Fewest tokens", "The reply does not end before"),
        Field("stop", "Stop string", "The reply ends before it"),
    ),
    "Denoising": (
        Field("sampler", "Sampler", "Which masks turn into tokens at a step"),
        Field("threshold", "Threshold", "A mask turns into a token from this confidence on, 0 to 1"),
        Field("steps", "Steps", "Denoising steps of the whole reply"),
        *(Field(n, n.capitalize().replace("_", " "), "Of the chosen sampler: docs/samplers.md") for n in OWN),
        Field("block_length", "Block length", "Models with full attention only: masks that are filled together"),
    ),
    "Randomness": (
        Field("temperature", "Temperature", "0 always takes the likeliest token"),
        Field("top_p", "Top p", "Only the likeliest tokens of this total probability"),
        Field("seed", "Seed", "The same seed gives the same reply"),
    ),
    "Attention": (
        Field("attention", "Policy", "How steps read the text before the block; all but dense approximate"),
        Field("budget", "Budget", "Prefix tokens that each query reads"),
        Field("keep", "Keep", "Share of the key blocks that are read"),
        Field("changed", "Changed", "New tokens after which the prefix is read again"),
    ),
}
CHOICES = {"sampler": tuple(SAMPLERS), "attention": tuple(POLICIES)}
ATTENTION_OPTIONS = {option for policy in POLICIES.values() for option in policy.options}


class SettingsPanel(QFrame):
    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("panel")
        self.setFixedWidth(312)
        self.inputs: dict[str, QLineEdit | QComboBox] = {}
        self._forms: dict[str, QFormLayout] = {}
        page = QWidget()
        self._column = QVBoxLayout(page)
        self._column.setContentsMargins(22, 14, 22, 22)
        self._column.setSpacing(10)
        for title, fields in SECTIONS.items():
            self._column.addWidget(section(title))
            self._column.addLayout(self._form(fields))
        self._column.addWidget(section("Conversation"))
        self.sends_history = Tick("Send earlier turns too")
        self.sends_history.setChecked(True)
        self._column.addWidget(self.sends_history)
        self._column.addSpacing(8)
        self._column.addWidget(button("Reset", self.reset), 0, Qt.AlignmentFlag.AlignLeft)
        self._box: ProblemBox | None = None
        self._column.addStretch(1)
        area = QScrollArea(widgetResizable=True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setWidget(page)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(1, 0, 0, 0)  # the panel's own line
        whole.addWidget(area)
        self._problem_place = QVBoxLayout()  # below the fields, and not scrolled with them
        whole.addLayout(self._problem_place)
        self._refresh()

    @property
    def problem(self) -> Problem | None:
        return self._box.problem if self._box is not None else None

    def values(self) -> dict[str, Any]:
        """Keyword arguments of `generate`: only what was filled in."""
        found = {name: typed(self._text(name), name) for name in self.inputs if self._is_shown(name)}
        given = {name: value for name, value in found.items() if value != ""}
        own = {name: as_list(given["sampler"], name, given.pop(name)) for name in OWN if name in given}
        return given | ({"sampler_options": own} if own else {})

    def reset(self) -> None:
        for widget in self.inputs.values():
            if isinstance(widget, QComboBox):
                widget.setCurrentIndex(0)
            else:
                widget.clear()

    def _form(self, fields: tuple[Field, ...]) -> QFormLayout:
        form = QFormLayout(horizontalSpacing=14, verticalSpacing=8)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for field in fields:
            widget = self._input(field)
            widget.setAccessibleName(field.label)
            widget.setAccessibleDescription(field.help)
            widget.setToolTip(field.help)
            title = label(field.label)
            title.setBuddy(widget)
            title.setFixedSize(LABEL_WIDTH, widget.sizeHint().height())
            form.addRow(title, widget)
            self.inputs[field.name], self._forms[field.name] = widget, form
        return form

    def _input(self, field: Field) -> QLineEdit | QComboBox:
        if field.name not in CHOICES:
            line = QLineEdit(placeholderText=DEFAULT)
            line.textChanged.connect(self._refresh)
            return line
        box = Choice()
        box.addItems([DEFAULT, *CHOICES[field.name]])
        box.currentIndexChanged.connect(self._refresh)
        return box

    def _text(self, name: str) -> str:
        widget = self.inputs[name]
        if isinstance(widget, QLineEdit):
            return widget.text()
        return widget.currentText() if widget.currentIndex() > 0 else ""

    def _is_shown(self, name: str) -> bool:
        if name in (*SHARED, *OWN):
            chosen = self._text("sampler")
            return has(chosen, name) if chosen else name in SHARED
        if name in ATTENTION_OPTIONS:
            return name in POLICIES[self._text("attention") or "dense"].options
        return True

    def _refresh(self) -> None:
        if len(self.inputs) < sum(map(len, SECTIONS.values())):
            return  # still being built
        for name, form in self._forms.items():
            form.setRowVisible(self.inputs[name], self._is_shown(name))
        for name in (*SHARED, *OWN):
            usual, line = default(self._text("sampler"), name), self.inputs[name]
            assert isinstance(line, QLineEdit)
            line.setPlaceholderText(DEFAULT if usual is None else shown(usual))
        if self._box is not None:
            self._box.hide()
            self._box.deleteLater()
            self._box = None
        try:
            values = self.values()
            settings = GenerateSettings.of(values)
            check(values.get("sampler", ""), settings.own_options)
        except UsageProblem as error:
            self._box = ProblemBox(Problem.of(error))
            self._problem_place.addWidget(self._box)
        self._problem_place.setContentsMargins(14, 0, 14, 14 if self._box is not None else 0)
        self.changed.emit()


def section(title: str) -> QLabel:
    made = label(title, "section")
    made.setIndent(0)
    made.setContentsMargins(0, 10, 0, 0)
    return made


def typed(text: str, name: str) -> Any:
    """A number where the text is one; any other text is left to GenerateSettings, which says what it expects."""
    if name == "stop":
        return text
    for kind in (int, float):
        try:
            return kind(text.strip())
        except ValueError:
            pass
    return text.strip()
