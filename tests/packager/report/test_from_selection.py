"""From measurements and a selection to the page, and to the page that says why there is none."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from packager.checkpoint.reader import read_checkpoint
from packager.core.errors import NothingFits
from packager.core.records import Budget, Limit
from packager.core.settings import DeviceSettings
from packager.devices.database import load_device
from packager.report.from_selection import write_selection_report
from packager.selection.candidates import of_measurement
from packager.selection.selector import select
from tests.support.samples import GIB, MEASUREMENT
from tests.support.tiny import write_checkpoint

BUDGET = Budget(name="mine", memory_bytes=10 * GIB, per_token_s=Limit(0.1, 0.2))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return read_checkpoint(write_checkpoint(tmp_path_factory.mktemp("reporting") / "demo"))


def page(tmp_path, checkpoint, measurements, budget, memory_bytes=16 * GIB, **more):
    settings = DeviceSettings(
        tmp_path,
        context_tokens=4096,
        threads=2,
        device=load_device("tesla-t4"),
        timed_here=True,
        budget=budget,
    )
    candidates = [of_measurement(m, parameters=1, context_tokens=4096) for m in measurements]
    try:
        outcome = select(candidates, budget, "tesla-t4", memory_bytes)
    except NothingFits as error:
        outcome = error
    file = tmp_path / "report.html"
    write_selection_report(file, checkpoint, measurements, settings, outcome, **more)
    return file.read_text("utf-8")


def words(html: str) -> str:
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_data = found.append
    parser.feed(html)
    return " ".join(" ".join(found).split())


def test_a_selection_shows_what_was_found(tmp_path, checkpoint):
    other = dataclasses.replace(MEASUREMENT.variant, recipe="Q8_0")
    slower = dataclasses.replace(MEASUREMENT, variant=other)
    text = words(page(tmp_path, checkpoint, [MEASUREMENT, slower], BUDGET))
    for part in ("gguf-Q4_K_M", "gguf-Q8_0", "Tesla T4", "mine", "1024 tokens of prompt"):
        assert part in text
    assert MEASUREMENT.artifact_sha256 in text and checkpoint.sha256 in text


def test_where_nothing_fits_the_page_says_what_would_do(tmp_path, checkpoint):
    text = words(page(tmp_path, checkpoint, [MEASUREMENT], BUDGET, memory_bytes=2 * GIB))
    assert "add 1.00 GiB of memory" in text


def test_the_date_can_be_fixed(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert "1970-01-02" in page(tmp_path, checkpoint, [MEASUREMENT], BUDGET)


def test_without_a_day_the_same_facts_give_the_same_page(tmp_path, checkpoint, monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert re.search(
        r"starpack . \d{4}-\d\d-\d\d", page(tmp_path, checkpoint, [MEASUREMENT], BUDGET)
    )
    text = page(tmp_path, checkpoint, [MEASUREMENT], BUDGET, dated=False)
    assert not re.search(r"20\d\d-\d\d-\d\d", text)
