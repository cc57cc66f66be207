"""Take the picture of the server's page for the documentation, while the reference model denoises.

    PYTHONPATH=. python tools/serve_screenshot.py docs/images/serve.png

Needs a Chromium (DLM_EDGE_BROWSER names one) and the packages of the extra `dev`. The model is slowed down to half a second
per step, so that the picture can be taken in the middle of a block; text, confidences and steps are the model's own.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from dlm_edge.artifacts import resolve_bundle
from dlm_edge.runtime import Engine
from dlm_edge.runtime.ort_step_model import OrtStepModel
from dlm_edge.server import Api, HttpServer, ServerOptions, listen
from tests.server.test_page import find_browser

FIRST = "json: Tara 16 Rosa 47 =>"
SECOND = "json: Ada 16 Rosa 47 Kim 85 =>"
STEP_S = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    asked = parser.parse_args()
    sock = listen("127.0.0.1", 0)
    with Engine.open(resolve_bundle("reference"), threads=1) as engine:
        server = HttpServer(Api(engine, ServerOptions(model_name="reference"), created=0), None)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        with sync_playwright() as player:
            browser = player.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
            page = browser.new_page(
                viewport={"width": 1180, "height": 760}, device_scale_factor=2, color_scheme=asked.theme
            )
            page.goto(f"http://127.0.0.1:{sock.getsockname()[1]}/")
            page.wait_for_selector("#attention option", state="attached")
            denoise(page)
            asked.picture.parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=asked.picture)
            page.press("#prompt", "Escape")
            browser.close()
        server.should_exit = True
        thread.join()


def denoise(page: Page) -> None:
    """Leave the page in the middle of an answer."""
    page.click("#show-settings")
    ask(page, FIRST)
    page.wait_for_selector("#send:visible")
    slow_down()
    page.select_option("#sampler", "static")
    page.fill("#max-tokens", "48")
    page.fill("#steps", "36")
    ask(page, SECOND)
    for _ in range(200):
        masks, words = (page.locator(f".canvas .{kind}").count() for kind in ("mask", "word:not(.end)"))
        if masks >= 4 and words >= 6:
            return
        time.sleep(0.1)
    raise SystemExit("no moment with both masks and words came")


def ask(page: Page, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    page.wait_for_selector("#stop:visible")


def slow_down() -> None:
    run = OrtStepModel.run

    def slow_run(self: OrtStepModel, *args: object, **options: object) -> object:
        time.sleep(STEP_S)
        return run(self, *args, **options)  # type: ignore[arg-type]

    OrtStepModel.run = slow_run  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    main()
