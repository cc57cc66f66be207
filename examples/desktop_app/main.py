"""A desktop application around `dlm_edge.runtime.Engine`: python examples/desktop_app/main.py [BUNDLE]"""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path

from PySide6.QtWidgets import QApplication

from engine_bridge import EngineBridge
from preferences import Preferences
from theme import CHOICES, Theme
from window import MainWindow

CLOSE_TIMEOUT_S = 5.0


def main() -> int:
    args = parser().parse_args()
    app = QApplication([sys.argv[0]])
    app.setApplicationName("dlm-edge")
    preferences = Preferences()
    bridge = EngineBridge(threads=args.threads, memory_budget=args.memory_budget, background=args.background)
    window = MainWindow(bridge, preferences, Theme(app, args.theme or preferences.theme))
    window.show()
    if args.prompt is not None:
        bridge.opened.connect(lambda model: window.send(args.prompt))
    if args.once:
        if isinstance(sys.stdout, io.TextIOWrapper):  # whatever the locale: a model may say anything
            sys.stdout.reconfigure(encoding="utf-8")
        bridge.finished.connect(lambda event: (print(event.result.text), window.close()))
        for failed in (bridge.failed, bridge.open_failed):
            failed.connect(lambda problem: (print(problem, file=sys.stderr), app.exit(1)))
    if args.bundle is not None:
        window.open_bundle(args.bundle)
    code = app.exec()
    if not bridge.close(CLOSE_TIMEOUT_S):
        # A model that is still being read cannot be interrupted, and nobody waits for it any more.
        os._exit(code)
    return code


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description="Chat with a diffusion language model, and watch it write.")
    made.add_argument("bundle", nargs="?", type=Path, help="folder that `dlm-edge export` wrote")
    made.add_argument("--threads", type=int, help="of the model; default: the machine's cores")
    made.add_argument("--memory-budget", metavar="SIZE", help='such as "6GiB": larger models are refused')
    made.add_argument("--background", action="store_true", help="let other programs go first (Linux)")
    made.add_argument("--theme", choices=CHOICES, help="default: what was chosen last")
    made.add_argument("--prompt", help="sent as soon as the model is open")
    made.add_argument("--once", action="store_true", help="print the first reply and quit: to see whether all is there")
    return made


if __name__ == "__main__":
    sys.exit(main())
