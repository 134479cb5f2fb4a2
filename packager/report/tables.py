"""The tables of a report, as data for its template. On a narrow screen a row becomes a card."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from packager.core.records import Interval
from packager.core.units import UNKNOWN, digits, show, show_ends, title_of
from packager.report.curves import error_bar, error_of, proof_means
from packager.report.data import (
    Comparison,
    MemoryCurve,
    ProofCurve,
    ReportData,
    ReportRow,
)
from packager.report.markup import inline
from packager.report.pareto_chart import front
from packager.report.view import Cell, Row, Table


def candidates_table(data: ReportData) -> Table:
    """Every candidate with its numbers, the verdict, and what would make it fit."""
    best = front(data)
    head = (
        "Variant", "Memory", "First token", "Per token", "Completion", "Divergence", "Agreement",
        "Verdict", "Binding limit, and the smallest change that would make it fit",
    )  # fmt: skip
    # the order of preference, what fits first
    ordered = sorted(data.candidates, key=lambda row: (not row.chosen, not row.feasible))
    rows = tuple(
        Row(
            (
                _named(row, row in best),
                _estimate("memory_bytes", row.memory_bytes),
                _estimate("first_token_s", row.first_token_s),
                _estimate("per_token_s", row.per_token_s),
                _estimate("completion_s", row.completion_s),
                Cell(show("divergence_nats", row.divergence_nats)),
                Cell(show("agreement", row.agreement)),
                Cell(verdict(row), f"verdict {'fits' if row.feasible else 'fails'}"),
                Cell(reasons=row.reasons),
            ),
            "chosen" if row.chosen else "",
        )
        for row in ordered
    )
    caption = "What fits first, each group in the order of preference"
    return Table(caption, head, rows, "cards candidates")


def verdict(row: ReportRow) -> str:
    """What became of a candidate."""
    return "chosen" if row.chosen else "fits" if row.feasible else "does not fit"


def _named(row: ReportRow, on_front: bool) -> Cell:
    quality = f"quality: {row.quality_evidence}" if row.quality_evidence else ""
    notes = (row.evidence, quality, "Pareto front" if on_front else "")
    return Cell(row.variant, "name", small=tuple(filter(None, notes)))


def _estimate(quantity: str, interval: Interval | None) -> Cell:
    ends = show_ends(quantity, interval)
    middle = None if interval is None else interval.middle
    return Cell(show(quantity, middle), small=(ends,) if ends else ())


def proofs_table(proofs: Sequence[ProofCurve]) -> Table:
    """The means of every proof."""
    head = ("Artifact", "Window", "Inside it", "Past it", "From full attention, past it", "Verdict")
    rows = []
    for curve in proofs:
        means = proof_means(curve)
        window = "none" if curve.window_tokens is None else f"{curve.window_tokens:,} tokens"
        nats = (Cell(show("x_nats", v)) for v in (means.inside, means.past, means.from_full))
        name, verdict = Cell(curve.name, "name"), Cell(curve.verdict or UNKNOWN)
        rows.append(Row((name, Cell(window), *nats, verdict)))
    return Table("Mean divergence of each artifact", head, tuple(rows), "cards proofs")


def memory_table(curves: Sequence[MemoryCurve]) -> Table:
    """The same as the memory chart."""
    found: dict[tuple[str, int], dict[bool, int]] = {}
    for curve in curves:
        for tokens, amount in zip(curve.contexts_tokens, curve.bytes, strict=True):
            found.setdefault((curve.name, tokens), {})[curve.windowed] = amount
    rows = tuple(
        Row(
            (
                Cell(name, "name"),
                Cell(f"{tokens:,}"),
                Cell(show("x_bytes", amounts.get(True))),
                Cell(show("x_bytes", amounts.get(False))),
            )
        )
        for (name, tokens), amounts in sorted(found.items())
    )
    head = ("Model", "Context, tokens", "With the window", "Without")
    return Table("Memory at each context", head, rows)


def comparisons_table(comparisons: Sequence[Comparison]) -> Table:
    """Estimate beside measurement, the error in per cent."""
    head = ("Artifact", "What", "Estimated", "Measured", "Error", "\N{PLUS-MINUS SIGN}50 %")
    rows = []
    for n, one in enumerate(comparisons, 1):
        outside = not one.estimated.low <= one.measured <= one.estimated.high
        bar = error_bar(one, f"error-{n}")
        cells = (
            Cell(one.artifact, "name"),
            Cell(title_of(one.quantity)),
            _estimate(one.quantity, one.estimated),
            Cell(show(one.quantity, one.measured)),
            Cell(_percent(error_of(one)), small=("outside the interval",) if outside else ()),
            Cell(UNKNOWN) if bar is None else Cell(picture=inline(bar)),
        )
        rows.append(Row(cells))
    return Table("Each estimate and its measurement", head, tuple(rows), "cards comparisons")


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


def pairs_table(caption: str, head: tuple[str, str], pairs: Iterable[tuple[str, str]]) -> Table:
    """Names and what belongs to them: versions, hashes."""
    rows = tuple(Row((Cell(name), Cell(value, element="code"))) for name, value in pairs)
    return Table(caption, head, rows, "pairs")


def _percent(share: float | None) -> str:
    if share is None:
        return UNKNOWN
    sign = "+" if share > 0 else "\N{MINUS SIGN}" if share < 0 else ""
    return f"{sign}{digits(abs(100 * share))} %"
