"""A report is one sound page, holds what it was given, and trusts no text from outside."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from packager.core.records import Interval
from packager.core.units import UNKNOWN, digits, show, show_ends, title_of
from packager.report import page as report
from packager.report import svg
from packager.report.curves import MAX_BINS, _binned, error_of, proof_means
from packager.report.markup import clean
from packager.report.page import Comparison, ProofCurve, key_value_curves, render, write_report
from packager.report.pareto_chart import SIZES, front, front_chart
from packager.report.svg import Box
from runtimes.contract import Window
from tests.support.report_samples import (
    GEOMETRY,
    GIB,
    HOSTILE,
    REPORTS,
    bare,
    full_report,
    interval,
    many,
    row,
)

VOID = {"meta", "link", "br", "img", "input", "hr"}
TAGS = set(
    """a b body caption circle code dd details div dl dt figcaption figure g h1 h2 head header html
    li line link main meta nav p path rect section small span strong style summary svg table tbody
    td text th thead title tr ul""".split()
)


class Page(HTMLParser):
    """A page as its tags and its text; refuses what is not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.parents: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} is there twice"
        self.tags.append((tag, dict(attrs)))
        self.parents.append(self.open[-1] if self.open else "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def text(self) -> str:
        """All words, the style sheet's excepted, white space made one."""
        return " ".join(" ".join(t for tag, t in self.texts if tag != "style").split())

    def named(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of that tag."""
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(params=REPORTS)
def page(request: pytest.FixtureRequest) -> Page:
    """Each of the sample reports, parsed."""
    return Page(render(REPORTS[request.param]()))


def test_page_is_sound(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert len(page.named("h1")) == len(page.named("main")) == 1
    assert page.named("html") == [{"lang": "en"}]
    assert {tag for tag, _ in page.tags} <= TAGS
    for _, attributes in page.tags:
        for reference in ("aria-labelledby", "href"):
            target = attributes.get(reference, "data:,").removeprefix("#")
            assert target == "data:," or target in ids


def test_every_picture_and_table_says_what_it_is(page):
    for n, (tag, attributes) in enumerate(page.tags):
        if tag == "svg":
            assert page.tags[n + 1] == ("title", {"id": attributes["aria-labelledby"]})
            assert attributes["role"] == "img"
        if tag == "table":
            assert page.tags[n + 1][0] == "caption"
        if tag == "th":
            assert attributes["scope"] in ("col", "row")
    assert page.named("svg") or "No candidate" in page.text


def test_page_asks_for_nothing(page):
    css = "".join(text for tag, text in page.texts if tag == "style")
    assert not re.search(r"url\(|@import|https?:", css)
    for tag, attributes in page.tags:
        assert not [
            name for name in attributes if name.startswith("on") or name in ("src", "style")
        ]
        assert tag in ("meta", "title") or "://" not in "".join(attributes.values())
    (policy,) = [m["content"] for m in page.named("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_text_from_outside_stays_text():
    page = Page(render(REPORTS["hostile"]()))
    words = " ".join(clean(HOSTILE).split())
    assert page.texts.count(("h1", clean(HOSTILE))) == 1
    # title, headline (three times), tables, notes, charts: wherever it was given
    assert page.text.count(words) > 15
    assert not page.named("script")
    assert not re.search("[\x00\u202e\ud800]", page.text)
    render(REPORTS["hostile"]()).encode()


def test_a_name_that_the_template_does_not_know_is_an_error():
    template = report._template()
    with pytest.raises(UndefinedError, match="is undefined"):
        template.render()


def test_chosen_one_is_the_headline_with_its_figures():
    text = Page(render(full_report())).text
    for words in (
        "gguf-Q6_K of starcoder2-3b is the choice for NVIDIA GeForce RTX 3050 4 GB",
        "within the budget \u201crelaxed\u201d (1,024 prompt tokens, 64 new tokens)",
        "2.94\xa0GiB of memory".replace("\xa0", " "),
        "163 ms",
        "743 ms for a completion (measured here)",
        "limit p50 200 ms, p90 400 ms",
        "Uncalibrated estimates were accepted",
        "ab" * 32,
        "0.3.36+starpack2",
    ):
        assert words in text


def test_nothing_fits_tells_the_smallest_changes():
    text = Page(render(REPORTS["nothing"]())).text
    answer = text[text.index("Nothing fits") : text.index("Lower and")]
    assert "gguf-IQ4_XS (misses memory by 0.31 GiB)" in answer
    # those that miss one limit come before those that miss two
    assert "gguf-Q5_K_M :" not in answer
    assert answer.count("(misses memory") == report.MAX_CHANGES


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bare(), "No candidate was looked at on Tesla T4 without limits."),
        (bare(candidates=(row("gguf-F16"),)), "Nothing fits on Tesla T4"),
        (
            REPORTS["unknowns"](),
            "1 of 3 candidates fit on Tesla T4 without limits; none was chosen.",
        ),
        (REPORTS["plan"](), "Outside the picture: the limit on memory 80.0 GiB."),
        (REPORTS["many"](), "12 more"),
    ],
)
def test_other_answers(data, words):
    assert words in Page(render(data)).text


def test_candidates_table_has_every_number_verdict_and_reason():
    data = full_report()
    text = Page(render(data)).text
    table = text[text.index("What fits first") :]
    for candidate in data.candidates:
        cells = [candidate.variant, show("memory_bytes", candidate.memory_bytes.middle)]
        cells += [show("divergence_nats", candidate.divergence_nats)]
        cells += [r.by_how_much for r in candidate.reasons]
        for cell in cells:
            assert cell.replace("\xa0", " ") in table
    assert table.count("does not fit") == sum(not c.feasible for c in data.candidates) == 4
    assert table.count("missed by") == sum(len(c.reasons) for c in data.candidates)


numbers = st.floats(1, 100)


@given(st.lists(st.tuples(numbers, numbers, st.none() | numbers, st.booleans()), max_size=12))
def test_front_is_what_nothing_feasible_beats(points):
    base = row("gguf-Q6_K")
    rows = tuple(
        replace(base, variant=str(n), feasible=feasible, divergence_nats=nats,
                memory_bytes=interval(memory, 0), completion_s=interval(time, 0))
        for n, (memory, time, nats, feasible) in enumerate(points)
    )  # fmt: skip
    data = bare(candidates=rows)
    best = front(data)

    def score(candidate):
        nats = candidate.divergence_nats
        quality = np.inf if nats is None else nats
        return np.array([candidate.memory_bytes.middle, candidate.completion_s.middle, quality])

    for candidate in rows:
        beaten = any(
            (score(other) <= score(candidate)).all() and (score(other) < score(candidate)).any()
            for other in rows
            if other.feasible
        )
        assert (candidate in best) == (candidate.feasible and not beaten)
    assert front(replace(data, candidates=tuple(best))) == best


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
@pytest.mark.parametrize("name", ["full", "plan", "many", "one", "hostile"])
def test_labels_keep_off_each_other_and_the_marks(name, size):
    chart = front_chart(REPORTS[name](), size)
    labels = [_box(e) for e in chart.iter("text") if e.get("class").startswith("label")]
    marks = [_mark(e) for e in chart.iter("circle") if e.get("class").startswith("mark")]
    assert labels and marks
    for one, other in combinations(labels, 2):
        assert not one.meets(other)
    for label in labels:
        assert size.frame.contains(label)
        assert not any(label.meets(mark) for mark in marks)


def _box(text) -> Box:
    x, y, width = float(text.get("x")), float(text.get("y")), svg.text_width(text.text)
    left = x - width * {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor")]
    return Box(left + 0.1, y - svg.FONT + 1, left + width - 0.1, y + 2)


def _mark(circle) -> Box:
    x, y, r = (float(circle.get(name)) for name in ("cx", "cy", "r"))
    return Box(x - r, y - r, x + r, y + r)


def test_every_candidate_is_drawn_infeasible_ones_hollow_the_chosen_one_ringed():
    for data, size in ((full_report(), SIZES[0]), (many(), SIZES[1])):
        circles = [e.get("class") for e in front_chart(data, size).iter("circle")]
        assert sum("mark" in c for c in circles) == len(data.candidates)
        assert sum("hollow" in c for c in circles) == sum(not c.feasible for c in data.candidates)
        assert circles.count("ring") == 1
    names = [e.text for e in front_chart(full_report(), SIZES[0]).iter("text")]
    assert {candidate.variant for candidate in full_report().candidates} <= set(names)


@given(
    st.lists(st.floats(1e-9, 1e12), min_size=1, max_size=9),
    st.none() | st.booleans(),
    st.integers(2, 9),
)
def test_scale_holds_its_values_in_order(values, log, most):
    scale = svg.scale_for(values, 40.0, 440.0, log=log)
    places = [scale.place(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(scale.holds(value) for value in values)
    assert scale.place(scale.low) == pytest.approx(40)
    assert scale.place(scale.high) == pytest.approx(440)
    ticks = scale.ticks(most)
    assert ticks == sorted(set(ticks))
    assert 1 <= len(ticks) <= 2 * most + 1


def test_proof_means_are_those_of_the_positions():
    rng = np.random.default_rng(0)
    kept, full = rng.random(900), rng.random(900)
    hidden = tuple(None if p < 256 else v for p, v in enumerate(full.tolist()))
    curve = ProofCurve("a", 256, tuple(range(900)), tuple(kept.tolist()), hidden)
    means = proof_means(curve)
    assert means.inside == pytest.approx(kept[:256].mean())
    assert means.past == pytest.approx(kept[256:].mean())
    assert means.from_full == pytest.approx(full[256:].mean())
    bins = _binned(curve.positions, curve.from_checkpoint_nats, 256)
    assert len(bins) <= MAX_BINS + 2
    # the mean position of a bin that held both sides of the edge would be off those of its side
    inside = [value for position, value in bins if position < 256]
    assert np.mean(inside) == pytest.approx(kept[:256].mean(), rel=0.02)


def test_key_value_memory_stops_growing_at_the_window():
    windowed, full = key_value_curves("3b", GEOMETRY, Window(4096), [4096, 16384, 65536])
    # GiB, published for StarCoder2-3B in half precision
    assert [amount / GIB for amount in full.bytes] == pytest.approx([0.117, 0.469, 1.875], abs=5e-4)
    assert len(set(windowed.bytes)) == 1
    assert windowed.bytes[0] / GIB == pytest.approx(0.117, abs=5e-4)
    assert len(key_value_curves("3b", GEOMETRY, Window(None), [4096])) == 1


def test_errors_are_shares_of_the_measurement():
    comparison = Comparison("a", "memory_bytes", Interval(2.7, 3.0, 3.3), 2.5)
    assert error_of(comparison) == pytest.approx(0.2)
    assert error_of(replace(comparison, measured=0)) is None
    text = Page(render(bare(comparisons=(comparison,)))).text
    assert "+20.0 %" in text
    assert "outside the interval" in text
    assert "Median absolute error: memory 20.0 % (1 measured)" in text


@pytest.mark.parametrize(
    ("quantity", "value", "shown"),
    [
        ("memory_bytes", 4.15 * GIB, "4.15 GiB"),
        ("memory_bytes", 1023 << 20, "1,023 MiB"),
        ("memory_bytes", 0, "0 KiB"),
        ("first_token_s", 0.00629, "6.29 ms"),
        ("first_token_s", 1.2, "1.20 s"),
        ("divergence_nats", 0.01234, "0.012 nats"),
        ("divergence_nats", 1.234e-7, "1.2e-7 nats"),
        ("agreement", 0.987, "98.7 %"),
        ("context_tokens", 16384, "16,384 tokens"),
        ("memory_bytes", None, UNKNOWN),
        ("completion_s", float("nan"), UNKNOWN),
        ("completion_s", float("inf"), UNKNOWN),
    ],
)
def test_quantities_are_shown_in_their_unit(quantity, value, shown):
    assert show(quantity, value).replace("\xa0", " ") == shown


def test_ends_titles_and_rounding():
    assert (
        show_ends("per_token_s", Interval(0.9, 1.0, 1.1)).replace("\xa0", " ") == "0.900 to 1.10 s"
    )
    assert show_ends("per_token_s", Interval(1, 1, 1)) == show_ends("per_token_s", None) == ""
    assert title_of("load_s") == "Load"
    assert digits(9.996) == "10.0"
    assert digits(-0.5) == "-0.500"


def test_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "new" / "report.html"
    write_report(file, full_report())
    assert file.read_text("utf-8") == render(full_report())
    before = file.read_bytes()
    monkeypatch.setattr(report, "front_chart", None)
    with pytest.raises(TypeError):
        write_report(file, full_report())
    assert file.read_bytes() == before
    assert [each.name for each in file.parent.iterdir()] == ["report.html"]


def test_colours_are_told_apart_from_their_ground():
    css = report.STYLE.read_text("utf-8")
    schemes = [dict(re.findall(r"--([\w]+): (#\w{6})", block)) for block in css.split(":root")[1:]]
    assert len(schemes) == 2
    assert schemes[0].keys() == schemes[1].keys()
    for colours in schemes:
        for ground in ("ground", "raised"):
            for words in ("ink", "muted", "accent", "bad", "good"):
                assert _contrast(colours[words], colours[ground]) >= 4.5, (words, ground)
            for mark in ("q0", "q1", "q2", "q3", "q4", "c0", "c1", "c2", "c3"):
                assert _contrast(colours[mark], colours[ground]) >= 3, (mark, ground)
        assert _contrast(colours["ink"], colours["warn"]) >= 4.5


def _contrast(one: str, other: str) -> float:
    """The contrast of two colours (WCAG 2.2, definition of contrast ratio)."""

    def luminance(colour: str) -> float:
        channels = np.array([int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)])
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ [0.2126, 0.7152, 0.0722])

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
