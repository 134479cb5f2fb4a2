"""The candidates as a picture: memory against completion time, quality as colour.

Labels keep off each other and off the marks; where there are too many, the best keep theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from packager.core.records import Interval
from packager.core.units import Unit, is_known, show, show_ends, title_of, unit_of
from packager.report import svg
from packager.report.data import BudgetLimit, ReportData, ReportRow
from packager.report.markup import tag
from packager.report.svg import Box, Frame, Scale

# Guessed: steps of a mean divergence that one colour stands for. On the demo, 8 bits stay below the
# first, the better 4 and 5 bits below the third.
QUALITY_STEPS_NATS = (1e-3, 1e-2, 1e-1)
RADIUS, RING = 5.5, 10.0
MAX_WHISKERS = 24  # guessed: with more candidates, intervals and all the names would hide marks
MIN_SHARE, MAX_SHARE = 0.4, 2.5  # guessed: a limit further out would squeeze the points together
MEMORY, TIME = "memory_bytes", "completion_s"


@dataclass(frozen=True, slots=True)
class Size:
    """A frame, and how much text it has room for."""

    name: str
    frame: Frame
    max_labels: int
    max_characters: int
    ticks: int
    detailed: int  # up to so many candidates have a second line


SIZES = (
    Size("wide", Frame(860, 480, 52, 846, 46, 430), 24, 30, 8, 12),
    Size("narrow", Frame(350, 400, 40, 344, 46, 350), 12, 16, 4, 0),
)


@dataclass(frozen=True, slots=True)
class Placed:
    """A candidate whose memory and completion time are known."""

    row: ReportRow
    memory: Interval
    completion: Interval

    def interval(self, quantity: str) -> Interval:
        """One of the two, by the quantity's name."""
        return self.memory if quantity == MEMORY else self.completion


@dataclass(frozen=True, slots=True)
class Plane:
    """Where memory and time lie in a frame, and the units that they are written in."""

    frame: Frame
    x: Scale
    y: Scale
    memory: Unit
    time: Unit

    def place(self, one: Placed) -> tuple[float, float]:
        """The pixel of a candidate."""
        return (
            self.x.place(one.memory.middle / self.memory.size),
            self.y.place(one.completion.middle / self.time.size),
        )


def placed(data: ReportData) -> list[Placed]:
    """The candidates that have both memory and time."""
    return [
        Placed(row, row.memory_bytes, row.completion_s)
        for row in data.candidates
        if is_known(row.memory_bytes) and is_known(row.completion_s)
    ]


def front(data: ReportData) -> list[ReportRow]:
    """Feasible candidates that no other feasible one beats in memory, time and quality at once.

    An unknown divergence is beaten by every known one.
    """
    return [one.row for one in _front(placed(data))]


def _front(rows: list[Placed]) -> list[Placed]:
    scores = [(_score(one), one) for one in rows if one.row.feasible]
    return [
        one
        for score, one in scores
        if not any(
            other != score and all(o <= s for o, s in zip(other, score, strict=True))
            for other, _ in scores
        )
    ]


def _score(one: Placed) -> tuple[float, float, float]:
    nats = one.row.divergence_nats
    quality = math.inf if nats is None or not math.isfinite(nats) else nats
    return one.memory.middle, one.completion.middle, quality


def quality_class(row: ReportRow) -> str:
    """The class that colours a candidate: q1, the nearest to the checkpoint, to q4; q0 unknown."""
    nats = row.divergence_nats
    if nats is None or not math.isfinite(nats):
        return "q0"
    return f"q{1 + sum(nats > step for step in QUALITY_STEPS_NATS)}"


def front_chart(data: ReportData, size: Size) -> Element:
    """The picture, at one size."""
    rows = placed(data)
    best = _front(rows)
    plane = _plane(data, rows, size.frame)
    x, y, frame = plane.x, plane.y, plane.frame
    axes = [
        *svg.x_axis(frame, x, f"memory, {plane.memory.sign}", svg.tick_label,
                     x.ticks(size.ticks)),
        *svg.y_axis(frame, y, f"completion, {plane.time.sign}", svg.tick_label, y.ticks(7)),
    ]  # fmt: skip
    limits, taken = _limits(data, plane)
    whiskers = [w for row in rows for w in _whiskers(row, plane)]
    # the chosen one last, on top of the others
    from_below = sorted(rows, key=lambda one: (one.row.chosen, one.row.feasible))
    marks = [_mark(one, plane) for one in from_below]
    order = sorted(
        rows,
        key=lambda one: (not one.row.chosen, one not in best, not one.row.feasible, _score(one)),
    )
    named = order if len(rows) <= MAX_WHISKERS else [o for o in order if o.row.chosen or o in best]
    leaders, names = _labels(named, order, plane, size, taken)
    return svg.picture(
        f"front-{size.name}",
        frame,
        f"Memory against completion time of {len(rows)} candidates, {len(best)} of them on the "
        f"Pareto front. The table below has the same numbers.",
        axes,
        limits,
        _staircase(best, plane),
        whiskers if len(rows) <= MAX_WHISKERS else [],
        leaders,
        marks,
        names,
    )


def limits_outside(data: ReportData) -> list[BudgetLimit]:
    """Limits on memory and time that are too far from the candidates to be drawn."""
    rows = placed(data)
    return [
        limit
        for quantity in (MEMORY, TIME)
        for limit in data.limits_on(quantity)
        if not _is_near(limit.value, _ends(rows, quantity))
    ]


def _ends(rows: list[Placed], quantity: str) -> list[float]:
    intervals = [one.interval(quantity) for one in rows]
    middles = [interval.middle for interval in intervals]
    if len(rows) > MAX_WHISKERS:
        return middles
    return [end for i in intervals for end in (i.low, i.high)] + middles


def _is_near(limit: float, values: list[float]) -> bool:
    return MIN_SHARE * min(values) <= limit <= MAX_SHARE * max(values)


def _plane(data: ReportData, rows: list[Placed], frame: Frame) -> Plane:
    def axis(quantity: str, first: float, last: float) -> tuple[Scale, Unit]:
        values = _ends(rows, quantity)
        values += [n.value for n in data.limits_on(quantity) if _is_near(n.value, values)]
        unit = unit_of(quantity, max(values))
        return svg.scale_for([value / unit.size for value in values], first, last), unit

    x, memory = axis(MEMORY, frame.left, frame.right)
    y, time = axis(TIME, frame.bottom, frame.top)
    return Plane(frame, x, y, memory, time)


def _limits(data: ReportData, plane: Plane) -> tuple[list[Element], list[Box]]:
    """Lines of the budget with their labels, and the boxes that these take."""
    frame, drawn, taken, row = plane.frame, [], [], 0
    outside = limits_outside(data)
    for limit in data.limits_on(MEMORY):
        if limit in outside:
            continue
        x, words = plane.x.place(limit.value / plane.memory.size), _limit_label(limit)
        left_half = x < (frame.left + frame.right) / 2
        # labels stand above the frame, a second one above the first
        drawn.append(svg.line(x, frame.top - 8 - 15 * row, x, frame.bottom, "limit"))
        drawn.append(
            svg.text(words, x + (4 if left_half else -4), frame.top - 8 - 15 * row,
                      "limit-label", "start" if left_half else "end")
        )  # fmt: skip
        row += 1
    for limit in data.limits_on(TIME):
        if limit in outside:
            continue
        y, words = plane.y.place(limit.value / plane.time.size), _limit_label(limit)
        drawn.append(svg.line(frame.left, y, frame.right, y, "limit"))
        drawn.append(svg.text(words, frame.right - 4, y - 4, "limit-label", "end"))
        width = svg.text_width(words)
        taken.append(Box(frame.right - 4 - width, y - 4 - svg.FONT, frame.right, y))
    return drawn, taken


def _limit_label(limit: BudgetLimit) -> str:
    return " ".join(filter(None, ("limit", limit.label, show(limit.quantity, limit.value))))


def _staircase(best: list[Placed], plane: Plane) -> list[Element]:
    """The edge that no feasible candidate is left of and below."""
    points: list[tuple[float, float]] = []
    for row in sorted(best, key=_score):
        x, y = plane.place(row)
        if not points or y > points[-1][1]:
            points += [(x, points[-1][1])] if points else []
            points.append((x, y))
    return [svg.curve(points, "front")] if len(points) > 1 else []


def _whiskers(row: Placed, plane: Plane) -> list[Element]:
    memory, time = row.memory, row.completion
    x, y = plane.place(row)
    lines = []
    if memory.low < memory.high:
        ends = (plane.x.place(end / plane.memory.size) for end in (memory.low, memory.high))
        left, right = ends
        lines.append(svg.line(left, y, right, y, "whisker"))
    if time.low < time.high:
        ends = (plane.y.place(end / plane.time.size) for end in (time.low, time.high))
        bottom, top = ends
        lines.append(svg.line(x, bottom, x, top, "whisker"))
    return lines


def _mark(one: Placed, plane: Plane) -> Element:
    (x, y), row = plane.place(one), one.row
    fits = "" if row.feasible else " hollow"
    ring = tag("circle", cx=x, cy=y, r=RING, class_="ring") if row.chosen else None
    dot = tag("circle", cx=x, cy=y, r=RADIUS, class_=f"mark {quality_class(row)}{fits}")
    return tag("g", tag("title", _tooltip(one)), ring, dot)


def _tooltip(one: Placed) -> str:
    row = one.row
    lines = [row.variant]
    for quantity in (MEMORY, TIME):
        interval = one.interval(quantity)
        ends = show_ends(quantity, interval)
        ends = f" ({ends})" if ends else ""
        lines.append(f"{title_of(quantity)}: {show(quantity, interval.middle)}{ends}")
    lines.append(f"Divergence: {show('divergence_nats', row.divergence_nats)}")
    verdict = "chosen" if row.chosen else "fits" if row.feasible else "does not fit"
    return "\n".join([*lines, f"{verdict}, {row.evidence}"])


def _labels(
    named: list[Placed], rows: list[Placed], plane: Plane, size: Size, taken: list[Box]
) -> tuple[list[Element], list[Element]]:
    """Leaders and names of `named`, the first of which chooses its place first."""
    detailed = len(rows) <= size.detailed
    boxes = [*taken, *(_mark_box(one, plane) for one in rows)]
    leaders: list[Element] = []
    names: list[Element] = []
    for one in named[: size.max_labels]:
        mark, row = _mark_box(one, plane), one.row
        lines = [svg.shorten(row.variant, size.max_characters)]
        if detailed and row.divergence_nats is not None:
            lines.append(show("divergence_nats", row.divergence_nats))
        width = max(map(svg.text_width, lines))
        box = svg.free_place(mark, width, len(lines), boxes, plane.frame)
        if box is None:
            continue
        boxes.append(box)
        leaders += _leader(box, mark)
        names += _name(lines, box, mark, "label chosen" if row.chosen else "label")
    return leaders, names


def _mark_box(one: Placed, plane: Plane) -> Box:
    x, y = plane.place(one)
    reach = (RING if one.row.chosen else RADIUS) + 1.5  # with the stroke
    return Box(x - reach, y - reach, x + reach, y + reach)


def _leader(box: Box, mark: Box) -> list[Element]:
    """A line from a label to its mark, where they do not stand side by side."""
    x, y = mark.centre
    near_x, near_y = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
    beside = (mark.right - mark.left) / 2 + svg.DISTANCES[1] / 2
    if math.hypot(near_x - x, near_y - y) < beside:
        return []
    return [svg.line(x, y, near_x, near_y, "leader")]


def _name(lines: list[str], box: Box, mark: Box, class_: str) -> list[Element]:
    """A label's lines, set against the side of its box that looks at the mark."""
    x, _ = mark.centre
    if box.left >= x:
        at, anchor = box.left, "start"
    elif box.right <= x:
        at, anchor = box.right, "end"
    else:
        at, anchor = (box.left + box.right) / 2, "middle"
    classes = [class_] + ["label detail"] * (len(lines) - 1)
    return [
        svg.text(words, at, box.top + svg.LINE * n + svg.FONT - 0.5, each, anchor)
        for n, (words, each) in enumerate(zip(lines, classes, strict=True))
    ]
