"""One self-contained report.html: the answer, why, and how every number was obtained.

The page needs no network, no script and no other file: charts are SVG, one style sheet serves
light, dark, phone and paper, and a policy in the page forbids it to load anything. Whoever renders
it gathers the facts (data.py); this file decides what is said of them, report.html.jinja where.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

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
from packager.report.markup import clean, inline
from packager.report.pareto_chart import (
    MAX_WHISKERS,
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
from packager.report.view import Answer, Change, Entry, Figure, Front, Memory, Proofs, Tile

STYLE = Path(__file__).with_name("report.css")
TEMPLATE = Path(__file__).with_name("report.html.jinja")
MAX_CHANGES = 5  # guessed: more are not read
MAX_OPEN_PROOFS = 8  # guessed: further plots are folded away
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
        "their upper bound is within the limit.",
    ),
    (
        "Divergence",
        "mean Kullback-Leibler divergence of the next token from the unquantised checkpoint, in "
        "nats; 0 is the checkpoint itself.",
    ),
    ("Agreement", "share of positions where the variant's most likely token is the checkpoint's."),
    ("First token", "from the request to its first token, the prompt's computation included."),
    ("Completion", "the whole request of the budget's workload, first token to last."),
)


SECTIONS = {
    "answer": "The answer",
    "front": "Memory, time and quality",
    "candidates": "Every candidate",
    "window": "The window, proved",
    "memory": "What the window saves",
    "errors": "Estimate against measurement",
    "how": "How these numbers were obtained",
}


PROOF_LEGEND = (
    Entry("stroke c0", "divergence from the checkpoint, with its window"),
    Entry("stroke c1 full", "from the checkpoint with full attention"),
    Entry("stroke window", "the window's end"),
)


def write_report(file: Path, data: ReportData) -> None:
    """Write the report to `file`, whole or not at all."""
    write_text(file, render(data))


def render(data: ReportData) -> str:
    """The report as one HTML page. The same data give the same bytes."""
    style = STYLE.read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    facts = (
        pairs_table("Versions", ("What", "Version"), data.versions),
        pairs_table("Provenance", ("What", "SHA-256"), data.provenance),
    )
    return _template().render(
        data=data,
        sections=SECTIONS,
        style=Markup(style),
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'",
        answer=_answer(data),
        front=_front(data),
        candidates=candidates_table(data),
        proofs=_proofs(data),
        floor=tick_label(FLOOR_NATS),
        memory=_memory(data),
        medians=median_errors(data.comparisons),
        comparisons=comparisons_table(data.comparisons),
        terms=HOW,
        facts=[table for table in facts if table.rows],
    )


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    return environment.get_template(TEMPLATE.name)


def _answer(data: ReportData) -> Answer:
    chosen = data.chosen
    if chosen is not None:
        tiles = tuple(_tile(data, chosen, quantity) for quantity in TILES)
        return Answer(_headline(data, chosen), chosen.variant, tiles=tiles)
    where = f"on {data.device_title} {_within(data)}"
    fitting = sum(row.feasible for row in data.candidates)
    if fitting:
        return Answer(
            f"{fitting} of {len(data.candidates)} candidates fit {where}; none was chosen."
        )
    if not data.candidates:
        return Answer(f"No candidate was looked at {where}.")
    return Answer(f" {where}.", "Nothing fits", fails=True, changes=_changes(data))


def _headline(data: ReportData, row: ReportRow) -> str:
    """What follows the name of the chosen one."""
    model = f" of {data.model}" if data.model else ""
    figures = [
        _figure("{} of memory", "memory_bytes", row.memory_bytes),
        _figure("the first token after {}", "first_token_s", row.first_token_s),
        _figure("{} per token", "per_token_s", row.per_token_s),
        _figure("{} for a completion", "completion_s", row.completion_s),
    ]
    known = ", ".join(filter(None, figures)) or "no figure is known"
    nats = show("divergence_nats", row.divergence_nats)
    basis = f", {row.quality_evidence}" if row.quality_evidence else ""
    quality = "" if row.divergence_nats is None else f" It diverges by {nats}{basis}."
    return (
        f"{model} is the choice for {data.device_title} {_within(data)}: {known} "
        f"({row.evidence}).{quality}"
    )


def _figure(words: str, quantity: str, interval: Interval | None) -> str:
    return "" if interval is None else words.format(show(quantity, interval.middle))


def _within(data: ReportData) -> str:
    named = f"within the budget \u201c{data.budget_name}\u201d"
    words = "without limits" if data.budget_name == "none" else named
    return f"{words} ({data.workload})" if data.workload else words


def _tile(data: ReportData, row: ReportRow, quantity: str) -> Tile:
    value: Interval | float | None = getattr(row, quantity)
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
    return Tile(title_of(quantity), number, unit, tuple(filter(None, small)))


def _changes(data: ReportData) -> tuple[Change, ...]:
    """The candidates that miss the fewest limits, and what would make them fit."""
    nearest = sorted((r for r in data.candidates if r.reasons), key=lambda row: len(row.reasons))
    return tuple(
        Change(row.variant, "; and ".join(map(_change, row.reasons)))
        for row in nearest[:MAX_CHANGES]
    )


def _change(reason: Reason) -> str:
    missed = f" (misses {reason.limit} by {reason.by_how_much})" if reason.by_how_much else ""
    return f"{reason.remedy or 'none is known'}{missed}"


def _front(data: ReportData) -> Front:
    rows = placed(data)
    if not rows:
        return Front((), (), "No candidate has both a memory and a completion time.")
    charts = tuple(Figure(size.name, inline(front_chart(data, size))) for size in SIZES)
    outside = ", ".join(
        f"{title_of(n.quantity).lower()} {n.label} {show(n.quantity, n.value)}".replace("  ", " ")
        for n in limits_outside(data)
    )
    best, missing = len(front(data)), len(data.candidates) - len(rows)
    notes = [
        f"Lower and further left is better. On the Pareto front: {best} of {len(rows)}, none of "
        "which another feasible candidate equals in memory, time and quality at once.",
        "Bars are intervals; a name that has no room is in the table."
        if len(rows) <= MAX_WHISKERS
        else "Only the front is labelled.",
        f"Outside the picture: the limit on {outside}." if outside else "",
        f"In the table alone, for want of memory or time: {missing}." if missing else "",
    ]
    return Front(_front_legend(), charts, " ".join(filter(None, notes)))


def _front_legend() -> tuple[Entry, ...]:
    steps = [f"{step:g}" for step in QUALITY_STEPS_NATS]
    words = [f"up to {steps[0]} nats", *(f"to {step}" for step in steps[1:]), "more", "unknown"]
    classes = [*(f"q{n + 1}" for n in range(len(steps) + 1)), "q0"]
    return (
        *(Entry(f"swatch {c}", w) for c, w in zip(classes, words, strict=True)),
        Entry("swatch q0 hollow", "does not fit"),
        Entry("swatch ringed q0", "chosen"),
        Entry("stroke front", "edge of the front"),
        Entry("stroke limit", "limit"),
    )


def _proofs(data: ReportData) -> Proofs:
    figures = tuple(
        Figure(proof.name, inline(proof_chart(proof, f"proof-{n}")))
        for n, proof in enumerate(data.proofs, 1)
        if proof.positions
    )
    shown, folded = figures[:MAX_OPEN_PROOFS], figures[MAX_OPEN_PROOFS:]
    return Proofs(PROOF_LEGEND, shown, folded, proofs_table(data.proofs))


def _memory(data: ReportData) -> Memory | None:
    curves = [curve for curve in data.memory_curves if curve.contexts_tokens]
    if not curves:
        return None
    entries = tuple(
        Entry(
            f"stroke {colour_of(curve, curves)}{'' if curve.windowed else ' full'}",
            f"{curve.name}, {'with' if curve.windowed else 'without'} the window",
        )
        for curve in curves
    )
    return Memory(inline(memory_chart(curves, "memory-chart")), entries, memory_table(curves))


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
