"""Pictures of the real window in the middle of denoising, light and dark, for the documentation:

dlm-edge export reference -o build/reference
xvfb-run -a -s "-screen 0 2600x1800x24" python examples/desktop_app/screenshot.py build/reference docs/images
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

PROMPTS = ("sort: Zoe Ada Max Kim =>", "json: Zoe 31 Kim 24 Max 58 =>", "def add(a, b):\n    return")
SETTINGS = {"max_new_tokens": "64", "sampler": "static"}
MIN_PLACED, MIN_MASKS = 5, 6  # slots that make a frame of the last reply worth showing


def main() -> int:
    bundle, out = Path(sys.argv[1]).absolute(), Path(sys.argv[2])
    os.environ["QT_SCALE_FACTOR"] = "2"
    os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp()  # not the user's own preferences
    from PySide6.QtWidgets import QApplication, QComboBox

    from dlm_edge.runtime import Frame
    from engine_bridge import EngineBridge
    from preferences import Preferences
    from theme import Theme
    from window import MainWindow

    app = QApplication([sys.argv[0]])
    bridge, theme = EngineBridge(threads=1), Theme(app, "light")
    window = MainWindow(bridge, Preferences(), theme)
    window.header.settings.setChecked(True)
    window.settings.sends_history.setChecked(False)
    for name, value in SETTINGS.items():
        widget = window.settings.inputs[name]
        if isinstance(widget, QComboBox):
            widget.setCurrentText(value)
        else:
            widget.setText(value)
    waiting = list(PROMPTS)

    def send_next(*_: object) -> None:
        if not waiting:
            print("no frame was worth showing", file=sys.stderr)
            app.exit(1)
            return
        window.composer.editor.setPlainText(waiting.pop(0))
        window.composer.button.click()

    def look(frame: Frame) -> None:
        placed = sum(cell.text is not None for cell in frame.cells)
        if waiting or placed < MIN_PLACED or len(frame.cells) - placed < MIN_MASKS:
            return
        for choice, name in (("light", "desktop.png"), ("dark", "desktop-dark.png")):
            theme.choose(choice)
            for _ in range(3):  # layout, scrolling, painting
                app.sendPostedEvents()
            window.grab().save(str(out / name))
        app.exit(0)

    bridge.opened.connect(send_next)
    bridge.finished.connect(send_next)
    bridge.failed.connect(lambda problem: (print(problem, file=sys.stderr), app.exit(1)))
    bridge.frame.connect(look)
    window.show()
    window.open_bundle(bundle)
    code = app.exec()
    bridge.close(5)
    return code


if __name__ == "__main__":
    sys.exit(main())
