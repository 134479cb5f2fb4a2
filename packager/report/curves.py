"""The curves of a report: divergence against position, memory against context, and error bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from packager.core.units import show, show_ends, unit_of
from packager.report import svg
from packager.report.data import Comparison, MemoryCurve, ProofCurve
from packager.report.markup import tag
from packager.report.svg import Frame

PROOF_FRAME = Frame(460, 270, 48, 450, 44, 222)
MEMORY_FRAME = Frame(460, 300, 48, 450, 44, 252)
MAX_BINS = 100  # guessed: as many points of a curve as can be told apart
FLOOR_NATS = 1e-9  # guessed: what is below comes from rounding, and has no place on a log axis
COLOURS = 4  # of curves, in the style sheet
ERROR_SPAN = 0.5  # an error bar shows half of the measurement to one and a half of it


@dataclass(frozen=True, slots=True)
class ProofMeans:
    """Mean divergences (nats) of a curve: inside the window, past it, past it from full attention.

    None where there is no such position.
    """

    inside: float | None
    past: float | None
    from_full: float | None


def proof_means(curve: ProofCurve) -> ProofMeans:
    """The means that a curve shows."""
    edge = _edge(curve)
    pairs = list(zip(curve.positions, curve.from_checkpoint_nats, strict=True))
    full = [v for p, v in zip(curve.positions, curve.from_full_nats, strict=False) if p >= edge]
    return ProofMeans(
        _mean([nats for position, nats in pairs if position < edge]),
        _mean([nats for position, nats in pairs if position >= edge]),
        _mean([nats for nats in full if nats is not None]),
    )


def proof_chart(curve: ProofCurve, name: str) -> Element:
    """Divergence against position on a logarithmic axis, the window marked."""
    frame, edge = PROOF_FRAME, _edge(curve)
    kept = _binned(curve.positions, curve.from_checkpoint_nats, edge)
    full = [
        point
        for point in _binned(curve.positions, curve.from_full_nats or (), edge)
        if point[0] >= edge
    ]
    x = svg.scale_for([0, *curve.positions], frame.left, frame.right, log=False)
    x = svg.Scale(0, max([*curve.positions, 1]), x.first, x.last)
    nats = [max(value, FLOOR_NATS) for _, value in (*kept, *full)]
    y = svg.scale_for(nats, frame.bottom, frame.top, log=True)
    past, mark = _window_mark(curve, x) if 0 < edge < x.high else ([], [])
    curves = [
        svg.curve([(x.place(p), y.place(max(v, FLOOR_NATS))) for p, v in points], class_)
        for points, class_ in ((full, "curve c1 full"), (kept, "curve c0"))
        if points
    ]
    return svg.picture(
        name,
        frame,
        f"Divergence of {curve.name} against position. Its means are in the table below.",
        past,
        svg.x_axis(frame, x, "position, tokens", svg.tick_label, x.ticks(6)),
        svg.y_axis(frame, y, "nats", svg.tick_label, y.ticks(6)),
        mark,
        curves,
    )


def _window_mark(curve: ProofCurve, x: svg.Scale) -> tuple[list[Element], list[Element]]:
    """What lies past the window, shaded, and a line with a label at its end."""
    frame, at = PROOF_FRAME, x.place(_edge(curve))
    size = {"width": frame.right - at, "height": frame.bottom - frame.top}
    words = f"window: {curve.window_tokens:,}"
    fits = at + svg.text_width(words) <= frame.width
    left, anchor = (at, "start") if fits else (frame.right, "end")
    return [tag("rect", x=at, y=frame.top, class_="past", **size)], [
        svg.line(at, frame.top - 4, at, frame.bottom, "window"),
        svg.text(words, left, frame.top - 9, "window-label", anchor),
    ]


def _edge(curve: ProofCurve) -> float:
    """The first position that no longer sees all that came before it."""
    return math.inf if curve.window_tokens is None else curve.window_tokens


def _binned(
    positions: Sequence[int], values: Sequence[float | None], edge: float
) -> list[tuple[float, float]]:
    """(position, value) means of neighbours; no bin lies on both sides of the edge."""
    known = [
        (position, value)
        for position, value in zip(positions, values, strict=bool(values))
        if value is not None and math.isfinite(value)
    ]
    size = max(1.0, len(known) / MAX_BINS)
    bins = []
    for side in ([p for p in known if p[0] < edge], [p for p in known if p[0] >= edge]):
        count = math.ceil(len(side) / size)
        for n in range(count):
            group = side[n * len(side) // count : (n + 1) * len(side) // count]
            bins.append(tuple(sum(column) / len(group) for column in zip(*group, strict=True)))
    return bins


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def memory_chart(curves: Sequence[MemoryCurve], name: str) -> Element:
    """Memory against context; a model's colour is the same with the window and without."""
    frame = MEMORY_FRAME
    contexts = sorted({tokens for curve in curves for tokens in curve.contexts_tokens})
    highest = max(amount for curve in curves for amount in curve.bytes)
    unit = unit_of("x_bytes", highest)
    x = svg.scale_for(contexts, frame.left + 8, frame.right - 8, log=True)
    y = svg.scale_for([0, highest / unit.size], frame.bottom, frame.top, log=False)
    drawn = []
    for curve in curves:
        points = [
            (x.place(tokens), y.place(amount / unit.size))
            for tokens, amount in zip(curve.contexts_tokens, curve.bytes, strict=True)
        ]
        colour = colour_of(curve, curves)
        style = "" if curve.windowed else " full"
        drawn.append(svg.curve(points, f"curve {colour}{style}"))
        for (px, py), tokens, amount in zip(
            points, curve.contexts_tokens, curve.bytes, strict=True
        ):
            told = f"{curve.name}, {tokens:,} tokens: {show('x_bytes', amount)}"
            dot = tag("circle", tag("title", told), cx=px, cy=py, r=3.5, class_=f"dot {colour}")
            drawn.append(dot)
    ticks = contexts if len(contexts) <= 12 else x.ticks(6)
    return svg.picture(
        name,
        frame,
        "Memory against context, with the window and without. The table has the same numbers.",
        svg.x_axis(frame, x, "context, tokens", svg.tick_label, ticks),
        svg.y_axis(frame, y, unit.sign, svg.tick_label, y.ticks(6)),
        drawn,
    )


def colour_of(curve: MemoryCurve, curves: Sequence[MemoryCurve]) -> str:
    """The class that colours a model's curves."""
    names = list(dict.fromkeys(each.name for each in curves))
    return f"c{names.index(curve.name) % COLOURS}"


def error_of(comparison: Comparison) -> float | None:
    """(estimated - measured) / measured; None where that cannot be said."""
    measured, estimated = comparison.measured, comparison.estimated.middle
    if not measured or not math.isfinite(measured) or not math.isfinite(estimated):
        return None
    return (estimated - measured) / measured


def error_bar(comparison: Comparison, name: str) -> Element | None:
    """The estimate's interval beside a line for the measurement, in shares of it."""
    if error_of(comparison) is None:
        return None
    frame = Frame(132, 18, 4, 128, 2, 16)
    x = svg.Scale(1 - ERROR_SPAN, 1 + ERROR_SPAN, frame.left, frame.right)
    interval, measured = comparison.estimated, comparison.measured
    low, middle, high = (
        x.place(value / measured) for value in (interval.low, interval.middle, interval.high)
    )
    ends = show_ends(comparison.quantity, interval) or show(comparison.quantity, interval.middle)
    return svg.picture(
        name,
        frame,
        f"estimated {ends}, measured {show(comparison.quantity, measured)}",
        [
            svg.line(frame.left, 9, frame.right, 9, "grid"),
            svg.line(low, 9, high, 9, "interval"),
            svg.line(x.place(1), 1, x.place(1), 17, "measured"),
            tag("circle", cx=middle, cy=9, r=4, class_="estimate"),
        ],
    )
