"""The browser of the tests notices what a page must not do, and leaves a good page alone."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.support.browser import DESKTOP_PX, PHONE_PX, find_chromium

GOOD = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>good</title>
<style>@media print { .screen { display: none } }</style>
</head><body><h1>All is well</h1><p id="late"></p>
<img alt="" src="data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==">
<script>document.getElementById("late").textContent = "written by a script";</script>
</body></html>"""


@pytest.mark.parametrize("width_px", [PHONE_PX, DESKTOP_PX])
def test_a_good_page_is_shown(tmp_path, open_page, width_px: int) -> None:
    report = open_page(write(tmp_path, GOOD), width_px)
    assert report.console == [] and report.requests == []
    assert "All is well" in report.text and "written by a script" in report.text
    assert report.width_px == width_px
    assert report.pdf.startswith(b"%PDF-")
    signature, shown_px = struct.unpack(">8s8xI", report.screenshot[:20])  # PNG, its first chunk
    assert signature == b"\x89PNG\r\n\x1a\n"
    assert shown_px == width_px * (2 if width_px == PHONE_PX else 1)


@pytest.mark.parametrize(
    ("html", "said"),
    [
        ("<script>console.error('it broke')</script>", "error: it broke"),
        ("<script>console.warn('take care')</script>", "warning: take care"),
        ("<script>missing.thing()</script>", "exception: missing is not defined"),
        (
            "<script>setTimeout(() => { throw Error('late') })</script>",
            "exception: late",
        ),
        ("<script>Promise.reject(Error('unheard'))</script>", "exception: unheard"),
    ],
)
def test_what_goes_wrong_is_heard(tmp_path, open_page, html: str, said: str) -> None:
    report = open_page(write(tmp_path, html), DESKTOP_PX)
    assert said in report.console


@pytest.mark.parametrize(
    ("html", "asked"),
    [
        ("<img src='https://example.com/x.png'>", "https://example.com/x.png"),
        ("<script>fetch('http://127.0.0.1:9/x').catch(() => 0)</script>", "http://127.0.0.1:9/x"),
        ("<link rel=stylesheet href='https://example.com/x.css'>", "https://example.com/x.css"),
        ("<style>body { background: url(http://example.com/b) }</style>", "http://example.com/b"),
        ("<iframe src='http://example.com/frame'></iframe>", "http://example.com/frame"),
        ("<script>new WebSocket('ws://127.0.0.1:9/s')</script>", "ws://127.0.0.1:9/s"),
        ("<script src='beside.js'></script>", "beside.js"),
    ],
)
def test_what_is_asked_for_is_seen(tmp_path, open_page, html: str, asked: str) -> None:
    (tmp_path / "beside.js").write_text("document.title = 'it ran'")
    report = open_page(write(tmp_path, html), DESKTOP_PX)
    assert [url.endswith(asked) for url in report.requests] == [True]


def test_a_page_too_wide_for_a_phone_shows(tmp_path, open_page) -> None:
    wide = GOOD.replace("<h1>", "<h1 style='width: 700px'>")
    assert open_page(write(tmp_path, wide), PHONE_PX).width_px > PHONE_PX
    no_viewport = GOOD.replace("name=", "data-name=")
    assert open_page(write(tmp_path, no_viewport), PHONE_PX).width_px > PHONE_PX


def test_print_is_its_own_layout(tmp_path, open_page) -> None:
    long = GOOD.replace("<p", "<div class=screen style='height: 9000px'></div><p", 1)
    tall = GOOD.replace("<p", "<div style='height: 9000px'></div><p", 1)
    hidden, shown = (open_page(write(tmp_path, html), DESKTOP_PX).pdf for html in (long, tall))
    assert hidden.count(b"/Type /Page\n") == 1
    assert shown.count(b"/Type /Page\n") > 3


def test_a_missing_browser_is_said_and_fails_in_ci(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        find_chromium()
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        find_chromium()


def write(folder: Path, html: str) -> Path:
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    return file
