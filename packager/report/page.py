"""One self-contained report.html: the answer, why, and how every number was obtained.

The page needs no network, no script and no other file: charts are SVG, one style sheet serves
light, dark, phone and paper, and a policy in the page forbids it to load anything. Whoever renders
it gathers the facts (report_data.py); this file decides what is said of them.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from xml.etree.ElementTree import Element

from packager.core.atomic import write_text
from packager.core.records import Interval
from packager.core.units import UNKNOWN, show, show_ends, title_of
from packager.report.curves import FLOOR_NATS, colour_of, memory_chart, proof_chart
from packager.report.data import (
    BudgetLimit,
    Comparison,
    MemoryCurve,
    ProofCurve,
    Reason,
    ReportData,
    ReportRow,
    key_value_curves,
)
from packager.report.markup import Child, document, tag
from packager.report.pareto_chart import (
    MOST_WHISKERS,
    QUALITY_STEPS_NATS,
    SIZES,
    front,
    front_chart,
    limits_outside,
    placed,
)
from packager.report.svg import tick_label
from packager.report.tables import (
    candidates_table,
    comparisons_table,
    median_errors,
    memory_table,
    pairs_table,
    proofs_table,
)

STYLE = Path(__file__).parent / "report.css"
MOST_CHANGES = 5  # guessed: more are not read
MOST_OPEN_PROOFS = 8  # guessed: further plots are folded away
TILES = ("memory_bytes", "first_token_s", "per_token_s", "completion_s", "divergence_nats")
HOW = (
    ("Measured here", "taken on the device itself, in a fresh process, after a warm-up."),
    (
        "Calibrated",
        "estimated from the model's geometry and the device's figures, corrected by a short "
        "measurement on that device.",
    ),
    ("Specification", "estimated from the device's published figures alone."),
    (
        "Intervals",
        "nine of ten measurements are expected to lie between the two ends. A variant fits if "
        "their bad end is within the limit.",
    ),
    (
        "Divergence",
        "mean Kullback-Leibler divergence of the next token from the unquantised checkpoint, in "
        "nats; 0 is the checkpoint itself.",
    ),
    ("Agreement", "share of positions where the checkpoint's first choice is the variant's too."),
    ("First token", "from the request to its first token, the prompt's computation included."),
    ("Completion", "the whole request of the budget's workload, first token to last."),
)


def write_report(file: Path, data: ReportData) -> None:
    """Write the report to `file`, whole or not at all."""
    write_text(file, render(data))


def render(data: ReportData) -> str:
    """The report as one HTML page. The same data give the same bytes."""
    sections = (
        _section("answer", "The answer", _answer(data)),
        _section("front", "Memory, time and quality", _front(data)),
        _section("candidates", "Every candidate", _candidates(data)),
        _section("window", "The window, proved", _proofs(data)),
        _section("memory", "What the window saves", _memory(data)),
        _section("errors", "Estimate against measurement", _errors(data)),
        _section("how", "How these numbers were obtained", _how(data)),
    )
    links = [tag("a", s[0].text or "", href=f"#{s.get('id')}") for s in sections]
    header = tag(
        "header",
        tag("p", " \N{MIDDLE DOT} ".join(filter(None, ["starpack", data.date])), class_="eyebrow"),
        tag("h1", data.title),
        tag("nav", links, aria_label="Sections"),
    )
    body = tag("body", header, tag("main", sections))
    return document(tag("html", _head(data), body, lang="en"))


def _head(data: ReportData) -> Element:
    css = STYLE.read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy + "form-action 'none'"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", data.title),
        tag("link", rel="icon", href="data:,"),  # or a browser asks the server for one
        tag("style", css),
    )


def _section(name: str, title: str, children: list[Child]) -> Element:
    return tag("section", tag("h2", title, id=f"{name}-h"), children, id=name,
               aria_labelledby=f"{name}-h")  # fmt: skip


def _note(words: str) -> Element:
    return tag("p", words, class_="note")


def _answer(data: ReportData) -> list[Child]:
    chosen = data.chosen
    warnings = [tag("p", words, class_="warning") for words in data.warnings]
    if chosen is not None:
        tiles = [_tile(data, chosen, quantity) for quantity in TILES]
        return [_headline(data, chosen), tag("dl", tiles, class_="tiles"), *warnings]
    where = f"on {data.device_title} {_within(data)}"
    fitting = sum(row.feasible for row in data.candidates)
    if fitting:
        words = f"{fitting} of {len(data.candidates)} candidates fit {where}; none was chosen."
        return [tag("p", words, class_="lead"), *warnings]
    if not data.candidates:
        return [tag("p", f"No candidate was looked at {where}.", class_="lead"), *warnings]
    lead = tag("p", tag("strong", "Nothing fits"), f" {where}.", class_="lead fails")
    return [lead, *_changes(data), *warnings]


def _headline(data: ReportData, row: ReportRow) -> Element:
    model = f" of {data.model}" if data.model else ""
    figures = [
        _figure("memory_bytes", row, "{} of memory"),
        _figure("first_token_s", row, "the first token after {}"),
        _figure("per_token_s", row, "{} per token"),
        _figure("completion_s", row, "{} for a completion"),
    ]
    nats = show("divergence_nats", row.divergence_nats)
    basis = f", {row.quality_evidence}" if row.quality_evidence else ""
    quality = "" if row.divergence_nats is None else f" It diverges by {nats}{basis}."
    return tag(
        "p",
        tag("strong", row.variant),
        f"{model} is the choice for {data.device_title} {_within(data)}: ",
        ", ".join(filter(None, figures)) or "no figure is known",
        f" ({row.evidence}).{quality}",
        class_="lead",
    )


def _figure(quantity: str, row: ReportRow, words: str) -> str:
    interval = getattr(row, quantity)
    return "" if interval is None else words.format(show(quantity, interval.middle))


def _within(data: ReportData) -> str:
    named = f"within the budget \u201c{data.budget_name}\u201d"
    words = "without limits" if data.budget_name == "none" else named
    return f"{words} ({data.workload})" if data.workload else words


def _tile(data: ReportData, row: ReportRow, quantity: str) -> Element:
    value = getattr(row, quantity)
    ends = show_ends(quantity, value) if isinstance(value, Interval) else ""
    shown = show(quantity, value.middle if isinstance(value, Interval) else value)
    number, _, unit = shown.partition("\N{NO-BREAK SPACE}")
    limits = ", ".join(
        f"{limit.label} {show(quantity, limit.value)}".strip() for limit in data.limits_on(quantity)
    )
    is_quality = quantity == "divergence_nats"
    evidence = (is_quality and row.quality_evidence) or row.evidence
    small = (
        ends,
        f"limit {limits}" if limits else "no limit",
        "not known" if shown == UNKNOWN else evidence,
    )
    return tag(
        "div",
        tag("dt", title_of(quantity)),
        tag("dd", tag("b", number), f" {unit}", [tag("small", words) for words in small if words]),
    )


def _changes(data: ReportData) -> list[Element]:
    """The candidates that miss the fewest limits, and what would make them fit."""
    nearest = sorted((r for r in data.candidates if r.reasons), key=lambda row: len(row.reasons))
    if not nearest:
        return []
    items = [
        tag("li", tag("b", row.variant), ": ", "; and ".join(map(_change, row.reasons)))
        for row in nearest[:MOST_CHANGES]
    ]
    return [tag("p", "The smallest changes that would make one fit:"), tag("ul", items)]


def _change(reason: Reason) -> str:
    excess = f" (misses {reason.limit} by {reason.by_how_much})" if reason.by_how_much else ""
    return f"{reason.remedy or 'none is known'}{excess}"


def _front(data: ReportData) -> list[Child]:
    rows = placed(data)
    if not rows:
        return [_note("No candidate has both a memory and a completion time.")]
    charts = [tag("div", front_chart(data, size), class_=size.name) for size in SIZES]
    outside = ", ".join(
        f"{title_of(n.quantity).lower()} {n.label} {show(n.quantity, n.value)}".replace("  ", " ")
        for n in limits_outside(data)
    )
    best, missing = len(front(data)), len(data.candidates) - len(rows)
    notes = [
        f"Lower and further left is better. On the Pareto front: {best} of {len(rows)}, none of "
        "which another feasible candidate equals in memory, time and quality at once.",
        "Bars are intervals; a name that has no room is in the table."
        if len(rows) <= MOST_WHISKERS
        else "Only the front is labelled.",
        f"Outside the picture: the limit on {outside}." if outside else "",
        f"In the table alone, for want of memory or time: {missing}." if missing else "",
    ]
    return [_front_legend(), *charts, _note(" ".join(filter(None, notes)))]


def _front_legend() -> Element:
    steps = [f"{step:g}" for step in QUALITY_STEPS_NATS]
    words = [f"up to {steps[0]} nats", *(f"to {step}" for step in steps[1:]), "more", "unknown"]
    classes = [*(f"q{n + 1}" for n in range(len(steps) + 1)), "q0"]
    entries = [
        *(_entry(f"swatch {c}", w) for c, w in zip(classes, words, strict=True)),
        _entry("swatch q0 hollow", "does not fit"),
        _entry("swatch ringed q0", "chosen"),
        _entry("stroke front", "edge of the front"),
        _entry("stroke limit", "limit"),
    ]
    return tag("ul", entries, class_="legend")


def _entry(class_: str, words: str) -> Element:
    return tag("li", tag("span", class_=class_), words)


def _candidates(data: ReportData) -> list[Child]:
    return [candidates_table(data)] if data.candidates else [_note("No candidate was looked at.")]


def _proofs(data: ReportData) -> list[Child]:
    if not data.proofs:
        return [_note("No artifact was measured, so there is no proof of a window to show.")]
    legend = tag(
        "ul",
        _entry("stroke c0", "divergence from the checkpoint, with its window"),
        _entry("stroke c1 full", "from the checkpoint with full attention"),
        _entry("stroke window", "the window's end"),
        class_="legend",
    )
    figures = [
        tag("figure", tag("figcaption", p.name), proof_chart(p, f"proof-{n}"))
        for n, p in enumerate(data.proofs, 1)
        if p.positions
    ]
    shown, folded = figures[:MOST_OPEN_PROOFS], figures[MOST_OPEN_PROOFS:]
    more = tag("summary", f"{len(folded)} more")
    return [
        _note(
            "An artifact that keeps the window stays as near to the checkpoint past it as inside, "
            "and far from what full attention would compute. Points are means of neighbouring "
            f"positions; below {tick_label(FLOOR_NATS)} nats they are drawn there."
        ),
        legend,
        tag("div", shown, class_="grid"),
        tag("details", more, tag("div", folded, class_="grid")) if folded else None,
        proofs_table(data.proofs),
    ]


def _memory(data: ReportData) -> list[Child]:
    curves = [curve for curve in data.memory_curves if curve.contexts_tokens]
    if not curves:
        return [_note("No model's geometry was given.")]
    entries = [
        _entry(
            f"stroke {colour_of(curve, curves)}{'' if curve.windowed else ' full'}",
            f"{curve.name}, {'with' if curve.windowed else 'without'} the window",
        )
        for curve in curves
    ]
    figure = tag("div", memory_chart(curves, "memory-chart"),
                 tag("ul", entries, class_="legend"))  # fmt: skip
    return [
        _note(f"Computed from the model's geometry: {data.memory_what}."),
        tag("div", figure, memory_table(curves), class_="grid"),
    ]


def _errors(data: ReportData) -> list[Child]:
    if not data.comparisons:
        return [_note("No estimate has a measurement beside it.")]
    medians = median_errors(data.comparisons)
    note = f"Median absolute error: {medians}. " if medians else ""
    bars = "A bar is the estimate's interval, its dot the middle, the upright line the measurement."
    return [_note(note + bars), comparisons_table(data.comparisons)]


def _how(data: ReportData) -> list[Child]:
    terms = [tag("div", tag("dt", term), tag("dd", words)) for term, words in HOW]
    notes = tag("ul", [tag("li", words) for words in data.notes], class_="notes")
    return [
        tag("dl", terms, class_="terms"),
        notes if data.notes else None,
        pairs_table("Versions", ("What", "Version"), data.versions) if data.versions else None,
        pairs_table("Provenance", ("What", "SHA-256"), data.provenance)
        if data.provenance
        else None,
    ]


__all__ = [
    "BudgetLimit",
    "Comparison",
    "MemoryCurve",
    "ProofCurve",
    "Reason",
    "ReportData",
    "ReportRow",
    "key_value_curves",
    "render",
    "write_report",
]
