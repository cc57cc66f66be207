"""The line at the bottom: what the process and the engine take of memory, and how fast the last reply came."""

from __future__ import annotations

from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QLabel, QStatusBar

from dlm_edge.memory import rss_bytes
from dlm_edge.runtime import Result
from engine_bridge import EngineBridge

INTERVAL_MS = 500


class NumbersBar(QStatusBar):
    def __init__(self, bridge: EngineBridge) -> None:
        super().__init__(sizeGripEnabled=False)
        self.setContentsMargins(18, 2, 18, 4)
        self.state, self.speed, self.memory = QLabel("no model open"), QLabel(), QLabel()
        for label, name in ((self.state, "State"), (self.speed, "Speed of the last reply"), (self.memory, "Memory")):
            label.setAccessibleName(name)
        self.addWidget(self.state, 1)
        self.addPermanentWidget(self.speed)
        self.addPermanentWidget(self.memory)
        self._bridge = bridge
        self._timer = QTimer(self, interval=INTERVAL_MS)
        self._timer.timeout.connect(self.refresh)
        self._timer.start()
        self.refresh()

    def show_speed(self, result: Result) -> None:
        said = f"{result.effective_tokens_per_s:.1f} tokens/s"
        if result.steps_per_token is not None:
            said += f"  ·  {result.steps_per_token:.2f} steps per token"
        self.speed.setText(f"{said}    ")

    def refresh(self) -> None:
        said = []
        if resident := rss_bytes():  # 0 where the system does not tell
            said.append(f"process {mebibytes(resident)}")
        if stats := self._bridge.stats():
            said.append(f"weights {mebibytes(stats.weight_bytes)}")
            said.append(f"caches {mebibytes(stats.working_bytes)}")
            if stats.memory_budget is not None:
                said.append(f"budget {mebibytes(stats.memory_budget)}")
        self.memory.setText("  ·  ".join(said))


def mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size < 100 * 2**20 else f"{size / 2**20:.0f} MiB"
