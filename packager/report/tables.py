"""The tables of a report. On a narrow screen each row becomes a card (see report.css)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element

from packager.core.records import Interval
from packager.core.units import UNKNOWN, digits, show, show_ends, title_of
from packager.report.curves import error_bar, error_of, proof_means
from packager.report.data import (
    Comparison,
    MemoryCurve,
    ProofCurve,
    Reason,
    ReportData,
    ReportRow,
)
from packager.report.markup import Child, tag
from packager.report.pareto_chart import front

Cell = Child | Iterable[Child]


def table(
    caption: str, head: Sequence[str], rows: Iterable[tuple[Sequence[Cell], str]], class_: str = ""
) -> Element:
    """A table with a caption; rows are (cells, class), the first cell of each names the row.

    The roles keep it a table for screen readers where the style sheet makes cards of its rows.
    """
    header = [tag("th", name, scope="col", role="columnheader") for name in head]
    body = [_row(head, cells, row_class) for cells, row_class in rows]
    return tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", header, role="row"), role="rowgroup"),
        tag("tbody", body, role="rowgroup"),
        role="table",
        class_=class_ or None,
    )


def _row(head: Sequence[str], cells: Sequence[Cell], class_: str) -> Element:
    first, *others = cells
    return tag(
        "tr",
        tag("th", _cell(first), scope="row", role="rowheader"),
        [
            tag("td", _cell(cell), role="cell", data_label=name)
            for name, cell in zip(head[1:], others, strict=True)
        ],
        role="row",
        class_=class_ or None,
    )


def _cell(cell: Cell) -> Element:
    """A cell's content in one box, which a card can set beside the column's name."""
    return tag("div", cell)


def candidates_table(data: ReportData) -> Element:
    """Every candidate with its numbers, the verdict, and what would make it fit."""
    best = front(data)
    head = (
        "Variant", "Memory", "First token", "Per token", "Completion", "Divergence", "Agreement",
        "Verdict", "Binding limit, and the smallest change that would make it fit",
    )  # fmt: skip
    rows = []
    # the order of preference, what fits first
    for row in sorted(data.candidates, key=lambda row: (not row.chosen, not row.feasible)):
        times = (row.first_token_s, row.per_token_s, row.completion_s)
        names = ("first_token_s", "per_token_s", "completion_s")
        cells = (
            _named(row, row in best),
            _estimate("memory_bytes", row.memory_bytes),
            *(_estimate(name, time) for name, time in zip(names, times, strict=True)),
            show("divergence_nats", row.divergence_nats),
            show("agreement", row.agreement),
            tag("span", verdict(row), class_=f"verdict {'fits' if row.feasible else 'fails'}"),
            [_reason(reason) for reason in row.reasons],
        )
        rows.append((cells, "chosen" if row.chosen else ""))
    return table(
        "What fits first, each group in the order of preference", head, rows, "cards candidates"
    )


def verdict(row: ReportRow) -> str:
    """What became of a candidate."""
    return "chosen" if row.chosen else "fits" if row.feasible else "does not fit"


def _named(row: ReportRow, on_front: bool) -> list[Element]:
    tiers = [row.evidence, f"quality: {row.quality_evidence}" if row.quality_evidence else ""]
    notes = [*filter(None, tiers), *(["Pareto front"] if on_front else [])]
    return [tag("span", row.variant, class_="name"), *(tag("small", note) for note in notes)]


def _estimate(quantity: str, interval: Interval | None) -> list[Child]:
    ends = show_ends(quantity, interval)
    middle = None if interval is None else interval.middle
    return [show(quantity, middle), tag("small", ends) if ends else None]


def _reason(reason: Reason) -> Element:
    return tag(
        "p",
        tag("b", reason.limit),
        f" missed by {reason.by_how_much}" if reason.by_how_much else "",
        tag("small", f"\N{RIGHTWARDS ARROW} {reason.remedy}") if reason.remedy else None,
        class_="reason",
    )


def proofs_table(proofs: Sequence[ProofCurve]) -> Element:
    """The means of every proof."""
    head = ("Artifact", "Window", "Inside it", "Past it", "From full attention, past it", "Verdict")
    rows = []
    for curve in proofs:
        means = proof_means(curve)
        window = "none" if curve.window_tokens is None else f"{curve.window_tokens:,} tokens"
        nats = [show("x_nats", v) for v in (means.inside, means.past, means.from_full)]
        name = tag("span", curve.name, class_="name")
        rows.append(((name, window, *nats, curve.verdict or UNKNOWN), ""))
    return table("Mean divergence of each artifact", head, rows, "cards proofs")


def memory_table(curves: Sequence[MemoryCurve]) -> Element:
    """The same as the memory chart."""
    found: dict[tuple[str, int], dict[bool, int]] = {}
    for curve in curves:
        for tokens, amount in zip(curve.contexts_tokens, curve.bytes, strict=True):
            found.setdefault((curve.name, tokens), {})[curve.windowed] = amount
    rows = [
        (
            (
                tag("span", name, class_="name"),
                f"{tokens:,}",
                show("x_bytes", amounts.get(True)),
                show("x_bytes", amounts.get(False)),
            ),
            "",
        )
        for (name, tokens), amounts in sorted(found.items())
    ]
    head = ("Model", "Context, tokens", "With the window", "Without")
    return table("Memory at each context", head, rows)


def comparisons_table(comparisons: Sequence[Comparison]) -> Element:
    """Estimate beside measurement, the error in per cent."""
    head = ("Artifact", "What", "Estimated", "Measured", "Error", "\N{PLUS-MINUS SIGN}50 %")
    rows = []
    for n, one in enumerate(comparisons, 1):
        outside = not one.estimated.low <= one.measured <= one.estimated.high
        cells = (
            tag("span", one.artifact, class_="name"),
            title_of(one.quantity),
            _estimate(one.quantity, one.estimated),
            show(one.quantity, one.measured),
            [_percent(error_of(one)), tag("small", "outside the interval") if outside else None],
            error_bar(one, f"error-{n}") if error_of(one) is not None else UNKNOWN,
        )
        rows.append((cells, ""))
    return table("Each estimate and its measurement", head, rows, "cards comparisons")


def median_errors(comparisons: Sequence[Comparison]) -> str:
    """`memory 2.1 % (4 artifacts)` for each quantity; empty where nothing can be said."""
    found: dict[str, list[float]] = {}
    for one in comparisons:
        error = error_of(one)
        if error is not None:
            found.setdefault(one.quantity, []).append(abs(error))
    return ", ".join(
        f"{title_of(quantity).lower()} {digits(100 * statistics.median(errors))} % "
        f"({len(errors)} measured)"
        for quantity, errors in found.items()
    )


def pairs_table(caption: str, head: tuple[str, str], pairs: Sequence[tuple[str, str]]) -> Element:
    """Names and what belongs to them: versions, hashes."""
    return table(caption, head, [((n, tag("code", v)), "") for n, v in pairs], "pairs")


def _percent(share: float | None) -> str:
    if share is None:
        return UNKNOWN
    sign = "+" if share > 0 else "\N{MINUS SIGN}" if share < 0 else ""
    return f"{sign}{digits(abs(100 * share))} %"
