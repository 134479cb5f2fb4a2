"""A report in a real browser: on a phone, on a desk, on paper, with nothing said or asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from packager.report.markup import clean
from packager.report.page import write_report
from tests.support.browser import DESKTOP_PX, PHONE_PX, OpenPage
from tests.support.report_samples import HOSTILE, REPORTS, VARIANTS


def saved(folder: Path, name: str) -> Path:
    """One of the sample reports as a file."""
    file = folder / "report.html"
    write_report(file, REPORTS[name]())
    return file


# 200 candidates are too long a picture on a phone to take it in little time
ON_PHONE = [name for name in REPORTS if name != "many"]
ON_DESK = ["full", "many", "hostile", "unknowns"]


@pytest.mark.parametrize(
    ("name", "width_px"),
    [*((name, PHONE_PX) for name in ON_PHONE), *((name, DESKTOP_PX) for name in ON_DESK)],
)
def test_report_is_shown_whole(tmp_path, open_page: OpenPage, name: str, width_px: int) -> None:
    page = open_page(saved(tmp_path, name), width_px)
    assert page.console == []
    assert page.requests == []
    assert page.width_px == width_px, "it scrolls sideways"
    for heading in ("The answer", "Every candidate", "How these numbers were obtained"):
        assert heading in page.text


@pytest.mark.parametrize("width_px", [PHONE_PX, DESKTOP_PX])
def test_style_sheet_is_let_in_by_the_policy(tmp_path, open_page: OpenPage, width_px: int) -> None:
    # without the style sheet both sizes of the picture are shown, and each name twice
    text = open_page(saved(tmp_path, "full"), width_px).text
    assert text.count("completion, s") == 1
    for variant in VARIANTS:
        assert variant in text


def test_paper_has_every_section_and_no_links(tmp_path, open_page: OpenPage) -> None:
    full, empty = (open_page(saved(tmp_path, name), DESKTOP_PX).pdf for name in ("full", "empty"))
    assert empty.count(b"/Type /Page\n") == 1
    assert 4 <= full.count(b"/Type /Page\n") <= 6
    assert b"/Subtype /Link" not in full


def test_hostile_names_are_read_not_run(tmp_path, open_page: OpenPage) -> None:
    page = open_page(saved(tmp_path, "hostile"), DESKTOP_PX)
    assert clean(HOSTILE).splitlines()[0] in page.text
