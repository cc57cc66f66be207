"""What is remembered between two starts: the bundles opened lately, and light or dark."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QSettings

from theme import CHOICES

MAX_RECENT = 8


class Preferences:
    def __init__(self) -> None:
        self._store = QSettings(QSettings.Format.IniFormat, QSettings.Scope.UserScope, "dlm-edge", "desktop-app")

    @property
    def recent(self) -> list[Path]:
        """The latest first. Folders that are gone are left out, and come back when they do."""
        return [path for path in self._all_recent() if path.is_dir()]

    def remember(self, path: Path) -> None:
        paths = [path, *(old for old in self._all_recent() if old != path)]
        self._store.setValue("recent", [str(each) for each in paths[:MAX_RECENT]])

    @property
    def theme(self) -> str:
        choice = self._store.value("theme", "system")
        return choice if isinstance(choice, str) and choice in CHOICES else "system"

    @theme.setter
    def theme(self, choice: str) -> None:
        self._store.setValue("theme", choice)

    def _all_recent(self) -> list[Path]:
        stored = self._store.value("recent", [])
        texts = [stored] if isinstance(stored, str) else stored if isinstance(stored, list) else []
        return [Path(text) for text in texts if isinstance(text, str) and text]
