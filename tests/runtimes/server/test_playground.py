"""The page at `/` in headless Chromium, in front of the toy's server: by keyboard, wide and narrow.

The page may say nothing on its console and ask its own server alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from runtimes.server.app import Settings, create_app
from runtimes.server.http.guard import Access
from runtimes.server.request import ServerDefaults
from runtimes.server.service import Service
from tests.support.browser import DESKTOP_PX, PHONE_PX, WAIT_MS, find_chromium
from tests.support.runtime_toys import random_logits, scripted_logits
from tests.support.serving import HERE, LICENCE, listening, make_service
from tests.support.tiny import tiny_tokenizer

KEY = "k" * 32
MIDDLE = "  <b>&amp;é😀"
SELECT_ALL = "Control+a"


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Chromium. Playwright's event loop runs in this thread meanwhile."""
    chromium = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium)
        yield opened
        opened.close()


@contextmanager
def opened(browser, url: str, width_px: int = DESKTOP_PX, scheme: str = "light") -> Iterator:
    """The page; its console has to stay empty, and its requests at home."""
    context = browser.new_context(
        viewport={"width": width_px, "height": 844},
        is_mobile=width_px < 600,
        color_scheme=scheme,
    )
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    try:
        yield page
        assert all(address.startswith((url, "data:")) for address in asked), asked
        assert said == page.evaluate("window.expected ?? []"), said
    finally:
        context.close()


def status_of(page, pattern: str) -> str:
    from playwright.sync_api import expect

    expect(page.locator("#status")).to_have_text(re.compile(pattern), timeout=WAIT_MS)
    return page.inner_text("#status")


def is_focused(page, name: str) -> None:
    """Chromium gives the focus when it draws, which may be after the page is loaded."""
    from playwright.sync_api import expect

    expect(page.locator(f"#{name}")).to_be_focused(timeout=WAIT_MS)


def answering(folder: Path, prefix: str, suffix: str, answer: str) -> Service:
    """A toy that fills in `answer` between the two."""
    encode = tiny_tokenizer().encode
    prompt_tokens = 3 + len(encode(prefix).ids) + len(encode(suffix).ids)
    return make_service(folder, scripted_logits(prompt_tokens, encode(answer).ids))


@pytest.mark.parametrize(
    ("width_px", "scheme"), [(DESKTOP_PX, "light"), (PHONE_PX, "dark"), (PHONE_PX, "light")]
)
def test_filling_in_by_keyboard(browser, tmp_path: Path, width_px: int, scheme: str) -> None:
    service = answering(tmp_path, "a\n", "\nb", MIDDLE)
    with listening(service) as url, opened(browser, url, width_px, scheme) as page:
        is_focused(page, "editor")
        page.keyboard.press(SELECT_ALL)
        page.keyboard.insert_text("a\n<FILL>\nb")
        page.keyboard.press("Control+Enter")
        status_of(page, "^Done")
        assert page.input_value("#editor") == f"a\n{MIDDLE}\nb"
        assert page.text_content("#backdrop mark") == MIDDLE
        assert page.text_content("#gutter").split() == ["1", "2", "3"]
        figures = page.inner_text("#timings")
        assert "First token" in figures and "the model ended" in figures
        assert page.evaluate("document.documentElement.scrollWidth") == width_px
        page.focus("#remove")
        page.keyboard.press("Enter")
        assert page.input_value("#editor") == "a\n<FILL>\nb"


def test_the_cursor_is_the_gap_where_there_is_no_marker(browser, tmp_path: Path) -> None:
    service = answering(tmp_path, "ab", "cd", "-")
    with listening(service) as url, opened(browser, url) as page:
        page.fill("#editor", "abcd")
        page.evaluate("document.getElementById('editor').setSelectionRange(2, 2)")
        page.click("#run")
        status_of(page, "^Done")
        assert page.input_value("#editor") == "ab-cd"
        page.fill("#editor", "<FILL><FILL>")
        page.click("#run")
        status_of(page, "more than once")


def test_tokens_stream_in_and_escape_ends_them(browser, tmp_path: Path) -> None:
    table = random_logits()

    def slow(position, ids):
        time.sleep(0.02)
        return table(position, ids)

    service = make_service(tmp_path, slow, defaults=ServerDefaults(max_tokens=350))
    with listening(service) as url, opened(browser, url) as page:
        page.fill("#tokens", "300")
        page.fill("#editor", "ab")
        page.check("input[value=complete]")
        page.focus("#editor")
        page.keyboard.press("Control+End")
        page.keyboard.press("Control+Enter")
        page.locator("#backdrop mark").filter(has_text=re.compile(".{3}", re.S)).wait_for()
        assert page.is_disabled("#run") and page.locator("#editor").get_attribute("readonly") == ""
        page.keyboard.press("Escape")
        status_of(page, "^Cancelled")
        text = page.input_value("#editor")
        assert text.startswith("ab") and len(text) > 3
        assert page.is_enabled("#run")


def test_the_other_tasks_and_the_terms(browser, service: Service) -> None:
    with listening(service) as url, opened(browser, url) as page:
        page.fill("#tokens", "4")
        page.fill("#editor", "def 😀(x):\n    return x\n")
        page.evaluate("document.getElementById('editor').setSelectionRange(0, 0)")
        page.check("input[value=docstring]")
        page.click("#run")
        status_of(page, "^Done")
        shown = page.input_value("#editor")
        assert re.fullmatch('def 😀\\(x\\):\n    """.*"""\n    return x\n', shown, re.S), shown
        page.check("input[value=translate]")
        page.select_option("#to", "go")
        page.click("#run")
        status_of(page, "^Done")
        assert page.inner_text("#answer")
        page.check("input[value=explain]")
        page.click("#run")
        status_of(page, "^Done")
        assert page.inner_text("#answer").startswith('"""\nWhat the code above does')
        assert "machine-generated" in page.inner_text("footer")
        page.focus("#licence")
        page.keyboard.press("Enter")
        page.locator("#terms[open]").wait_for()
        assert LICENCE in page.inner_text("#terms")
        page.keyboard.press("Enter")  # its button has the focus
        page.locator("#terms[open]").wait_for(state="detached")


def test_everything_can_be_reached_with_the_tab_key(browser, service: Service) -> None:
    with listening(service) as url, opened(browser, url) as page:
        page.check("input[value=translate]")
        order = []
        for _ in range(11):
            order.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
            page.keyboard.press("Tab")
        ids = "task editor run language to tokens temperature seed key licence"
        assert order == [*ids.split(), ""]  # last the link to the description
        nameless = page.evaluate(
            "[...document.querySelectorAll('input, select, textarea, button')]"
            ".filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim()))"
            ".map(e => e.outerHTML)"
        )
        assert nameless == []


def test_the_key_that_a_server_wants_is_asked_for(browser, service: Service) -> None:
    settings = Settings(access=Access((KEY,)))
    with listening(service, settings) as url, opened(browser, url) as page:
        page.fill("#tokens", "4")
        page.click("#run")
        status_of(page, "API key is needed")
        is_focused(page, "key")
        page.keyboard.insert_text(KEY)
        page.keyboard.press("Control+Enter")
        status_of(page, "^Done")
        page.evaluate(  # the browser's own word about the first answer
            "window.expected = ['Failed to load resource: "
            "the server responded with a status of 401 (Unauthorized)']"
        )


def test_only_reading_the_page_needs_no_key(service: Service) -> None:
    app = create_app(service, Settings(access=Access((KEY,))))
    with TestClient(app, base_url=HERE) as client:
        page = client.get("/")
        assert page.status_code == client.get("/licence").status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert KEY not in page.text
        assert client.post("/", json={"inputs": "x"}).status_code == 401
        assert client.post("/v1/tasks/complete", json={"prompt": "x"}).status_code == 401


def test_the_page_is_one_file_under_a_policy(client: TestClient) -> None:
    page = client.get("/")
    assert not re.search(r"(src|srcset|action)=|@import|url\(|https?://", page.text)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "connect-src 'self'" in policy and policy.count("'sha256-") == 2


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    service = make_service(tmp_path)
    hostile = "<script>alert(1)</script>$style\"'"
    service.model = replace(service.model, name=hostile)
    with TestClient(create_app(service, Settings()), base_url=HERE) as client:
        text = client.get("/").text
    assert hostile not in text and "<script>alert" not in text
    assert text.count("<style>") == 1
