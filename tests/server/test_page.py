"""The page in a real headless browser: key, masks turning into words, stop, settings, keyboard, and what it may load."""

from __future__ import annotations

import os
import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
from tests.runtime.test_engine import GatedModel  # noqa: E402
from tests.server.conftest import KEY, LIMIT_S  # noqa: E402

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
expect = playwright.expect
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def find_browser():
    named = os.environ.get("DLM_EDGE_BROWSER")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser():
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium found: apt-get install chromium-headless-shell, or name one in DLM_EDGE_BROWSER")
    with playwright.sync_playwright() as player:
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        running = player.chromium.launch(executable_path=path, args=arguments)
        yield running
        running.close()


@pytest.fixture
def page(browser):
    """Fails on whatever the browser itself complains of: errors of scripts, breaches of the policy."""
    context = browser.new_context()
    context.set_default_timeout(1000 * LIMIT_S)
    opened = context.new_page()
    complaints, asked = [], []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("request", lambda request: asked.append(request))
    opened.complaints, opened.asked = complaints, asked
    yield opened
    context.close()
    assert not complaints


def send(page, text="some words"):
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def open_with_key(page, served):
    page.goto(f"{served.url}/#key={KEY}")
    expect(page.locator("#model")).to_contain_text("toy")


def test_masks_turn_into_words(page, gated):
    open_with_key(page, gated)
    page.click("#show-settings")
    page.fill("#max-tokens", "24")
    page.select_option("#sampler", "static")
    page.fill("#steps", "24")
    gated.server.api.engine.parts.model.free = 7
    send(page)
    page.wait_for_selector(".canvas .mask")
    page.wait_for_selector(".canvas .word")
    assert page.locator("#stop").is_visible() and not page.locator("#send").is_visible()
    assert page.locator(".canvas .cell").count() <= 8 and "step" in page.inner_text(".numbers")
    gated.gate.set()
    page.wait_for_selector("#send:visible")
    expected = gated.engine.generate(
        [{"role": "user", "content": "some words"}], max_new_tokens=24, sampler="static", steps=24
    )
    assert page.text_content(".answer .text") == expected.text
    assert page.locator(".cell:not(.legend .cell)").count() == 0
    numbers = page.inner_text(".numbers")
    assert "24 tokens" in numbers and "tokens/s" in numbers and f"{expected.steps} steps" in numbers


def test_the_key_is_asked_for_once_and_kept_in_the_tab(page, served):
    page.goto(served.url)
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key", "a-wrong-key-0123456789")
    page.press("#key", "Enter")
    expect(page.locator("#key-problem")).to_contain_text("does not know")
    page.fill("#key", KEY)
    page.press("#key", "Enter")
    expect(page.locator("#model")).to_contain_text("toy")
    page.reload()
    expect(page.locator("#model")).to_contain_text("toy")
    assert not page.locator("#key-dialog").is_visible()
    assert page.evaluate("[Object.keys(localStorage).length, document.cookie]") == [0, ""]
    assert len(page.complaints) == 2 and all("401" in each for each in page.complaints)
    page.complaints.clear()


def test_the_key_leaves_the_address_and_goes_into_no_url(page, served):
    open_with_key(page, served)
    assert page.url == served.url + "/"
    assert all(KEY not in request.url.partition("#")[0] for request in page.asked)
    assert {request.url.removeprefix(served.url).partition("#")[0] for request in page.asked} == {
        "/",
        "/page.css",
        "/page.js",
        "/v1/models",
    }


def test_stop_keeps_the_text_and_frees_the_engine(page, gated):
    open_with_key(page, gated)
    send(page)
    page.wait_for_selector("#stop:visible")
    page.press("#prompt", "Escape")
    page.wait_for_selector("#send:visible")
    assert "stopped" in page.inner_text(".numbers")
    gated.wait_until_idle()
    gated.gate.set()
    send(page, "again")
    expect(page.locator(".numbers").nth(1)).to_contain_text("tokens/s")
    assert page.locator(".mine").count() == 2


def test_text_is_never_markup(page, served):
    open_with_key(page, served)
    send(page, HOSTILE)
    expect(page.locator(".numbers")).to_contain_text("tokens/s")
    assert page.inner_text(".mine .text") == HOSTILE and page.locator("main img, main script").count() == 0
    made = page.evaluate(
        "text => { const view = new AnswerView(); view.commit(text); return view.item.outerHTML }", HOSTILE
    )
    assert "&lt;script&gt;" in made and "<script" not in made


def test_the_policy_stops_what_is_injected(page, served):
    open_with_key(page, served)
    with pytest.raises(playwright.Error, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")
    page.evaluate(
        "{ const s = document.createElement('style'); s.textContent = 'body{color:red}'; document.head.append(s) }"
    )
    assert page.evaluate("getComputedStyle(document.body).color") != "rgb(255, 0, 0)"
    assert page.complaints and all(
        "Content Security Policy" in each or "TrustedHTML" in each for each in page.complaints
    )
    page.complaints.clear()


def test_a_refused_setting_is_said(page, served):
    open_with_key(page, served)
    page.click("#show-settings")
    page.fill("#max-tokens", "100000")
    send(page)
    page.wait_for_selector("#status.problem")
    assert "exceed the context of 512" in page.inner_text("#status")
    assert len(page.complaints) == 1 and "400" in page.complaints.pop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_and_the_button(page, served, scheme):
    page.emulate_media(color_scheme=scheme)
    open_with_key(page, served)
    other = {"light": "dark", "dark": "light"}[scheme]
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    page.click("#theme")
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == other


def test_everything_can_be_reached_by_keyboard(page, served):
    open_with_key(page, served)
    page.click("#show-settings")
    page.focus("#new-chat")
    seen = []
    for _ in range(20):
        seen.append(page.evaluate("document.activeElement.id"))
        page.keyboard.press("Tab")
    wanted = ["new-chat", "show-settings", "theme", "sampler", "threshold", "max-tokens", "temperature", "seed"]
    assert [each for each in seen if each in wanted][: len(wanted)] == wanted and "prompt" in seen


def test_it_fits_a_telephone(page, served):
    page.set_viewport_size({"width": 360, "height": 640})
    open_with_key(page, served)
    send(page, "word " * 60)
    expect(page.locator(".numbers")).to_contain_text("tokens/s")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#send").bounding_box()["x"] + page.locator("#send").bounding_box()["width"] <= 360


def test_a_server_that_has_gone_is_said(page, serve):
    served = serve(GatedModel())
    open_with_key(page, served)
    served.engine.close()
    served.stop()
    send(page)
    page.wait_for_selector("#status.problem")
    page.complaints.clear()  # the browser's own words for it
