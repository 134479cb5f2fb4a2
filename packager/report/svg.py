"""Axes, curves and labels as SVG, for any chart. Knows nothing of what is plotted.

Colours and strokes are classes, which the page's style sheet fills in for light, dark and print.
Lengths are in the pixels of the picture's view box.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from packager.report.markup import tag

# Guessed: a wider spread of values than this reads better on a logarithmic axis.
LOG_SPREAD = 2.0
MIN_LOG_SPREAD = 2.0  # guessed: enough for two ticks
# Guessed: the width of a character in sizes of the font. Wide fallback fonts (DejaVu) have 0.6.
CHARACTER = 0.62
FONT = 12.0
LINE = 15.0  # from one line of text to the next
DISTANCES = (3, 18, 38, 62, 90)  # guessed: of a label from its mark; a leader from the second on
DIRECTIONS = (
    (1, 0), (-1, 0), (0, -1), (0, 1), (0.7, -0.7), (0.7, 0.7), (-0.7, -0.7), (-0.7, 0.7),
    (0.9, -0.4), (0.9, 0.4), (-0.9, -0.4), (-0.9, 0.4),
)  # fmt: skip
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MANTISSAS = ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))


@dataclass(frozen=True, slots=True)
class Scale:
    """Where the values from low to high lie, between the pixels first and last."""

    low: float
    high: float
    first: float
    last: float
    log: bool = False

    def place(self, value: float) -> float:
        """The pixel of a value; of one beyond an end, that end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.first + share * (self.last - self.first)

    def holds(self, value: float) -> bool:
        """Whether a value is between the ends."""
        return self.low <= value <= self.high

    def ticks(self, most: int) -> list[float]:
        """Round values between the ends, at most about that many."""
        if self.log and self.high > 10 * self.low:
            return self._log_ticks(most)
        return self._linear_ticks(most)

    def _linear_ticks(self, most: int) -> list[float]:
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
        begin, end = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [n * step for n in range(begin, end + 1)]

    def _log_ticks(self, most: int) -> list[float]:
        begin, end = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for mantissas in MANTISSAS:
            every = 1 if len(mantissas) > 1 else max(1, math.ceil((end - begin) / most))
            powers = [p for p in range(begin, end + 1) if p % every == 0]
            ticks = [m * 10.0**p for p in powers for m in mantissas]
            ticks = [tick for tick in ticks if self.holds(tick)]
            if len(ticks) <= most:
                return ticks
        return ticks


def scale_for(
    values: Iterable[float], first: float, last: float, *, log: bool | None = None
) -> Scale:
    """A scale that holds all of `values`, with some air; log None: as their spread asks for.

    Linear ones begin at 0 where the values come near it. Logarithmic ones hold what is above 0.
    """
    found = sorted(values)
    above = [value for value in found if value > 0]
    if log is None:
        log = len(above) == len(found) > 0 and found[-1] > LOG_SPREAD * found[0]
    if log:
        low, high = (above[0], above[-1]) if above else (0.1, 1.0)
        air = max((high / low) ** 0.08, (MIN_LOG_SPREAD * low / high) ** 0.5)
        return Scale(low / air, high * air, first, last, log=True)
    low, high = (found[0], found[-1]) if found else (0.0, 1.0)
    air = 0.12 * (high - low or abs(high) or 1.0)
    near_zero = 0 <= low < 0.5 * high
    return Scale(0.0 if near_zero or low == high == 0 else low - air, high + air, first, last)


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture, and the part of it between the axes."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float

    def contains(self, box: Box) -> bool:
        """Whether a box lies between the axes, whole."""
        return (
            box.left >= self.left
            and box.right <= self.right
            and box.top >= self.top
            and box.bottom <= self.bottom
        )


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def centre(self) -> tuple[float, float]:
        """Its middle."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def meets(self, other: Box) -> bool:
        """Whether the two overlap."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def picture(name: str, frame: Frame, title: str, *children: Iterable[Element]) -> Element:
    """An SVG of that id, which a screen reader reads as one image with a title."""
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        *children,
        id=name,
        role="img",
        aria_labelledby=f"{name}-title",
        viewBox=f"0 0 {frame.width:g} {frame.height:g}",
        width=frame.width,
        height=frame.height,
    )


def x_axis(
    frame: Frame, scale: Scale, title: str, label: Callable[[float], str], ticks: Sequence[float]
) -> list[Element]:
    """Grid, labels and title along the bottom; a label that would touch another is left out."""
    drawn, free_from = [line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")], -1.0
    for tick in ticks:
        x, width = scale.place(tick), text_width(label(tick))
        drawn.append(line(x, frame.top, x, frame.bottom, "grid"))
        if x - width / 2 > free_from and x + width / 2 <= frame.width:
            drawn.append(text(label(tick), x, frame.bottom + 17, "tick", "middle"))
            free_from = x + width / 2 + 8
    drawn.append(text(title, frame.right, frame.bottom + 36, "axis-title", "end"))
    return drawn


def y_axis(
    frame: Frame, scale: Scale, title: str, label: Callable[[float], str], ticks: Sequence[float]
) -> list[Element]:
    """The same along the left, its title above it where it can be read without turning."""
    drawn, free_to = [], math.inf
    for tick in ticks:
        y = scale.place(tick)
        drawn.append(line(frame.left, y, frame.right, y, "grid"))
        if y + FONT <= free_to:
            drawn.append(text(label(tick), frame.left - 7, y + 4, "tick", "end"))
            free_to = y
    drawn.append(text(title, 2, FONT, "axis-title", "start"))
    return drawn


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Element:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def text(words: str, x: float, y: float, class_: str, anchor: str = "start") -> Element:
    """One line of text, y at its base line."""
    return tag("text", words, x=x, y=y, class_=class_, text_anchor=anchor)


def curve(points: Sequence[tuple[float, float]], class_: str) -> Element:
    """A line through points; through a single one, a dot (where caps are round)."""
    path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points) + " h0"
    return tag("path", d=path, class_=class_)


def tick_label(value: float) -> str:
    """A round number in full, or as a power of ten where that is shorter."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.6g}"
    mantissa, exponent = f"{value:.5e}".split("e")
    power = "10" + str(int(exponent)).translate(SUPERSCRIPTS)
    return power if float(mantissa) == 1 else f"{float(mantissa):g}\N{MIDDLE DOT}{power}"


def text_width(words: str) -> float:
    """About how wide a text is."""
    return CHARACTER * FONT * len(words)


def shorten(words: str, most: int) -> str:
    """`words`, its middle left out where it is longer than `most` characters: the ends tell."""
    if len(words) <= most:
        return words
    tail = most // 2
    return f"{words[: most - tail - 1]}\N{HORIZONTAL ELLIPSIS}{words[-tail:]}"


def free_place(
    mark: Box, width: float, lines: int, taken: Sequence[Box], frame: Frame
) -> Box | None:
    """Where a label of that size can stand near a round mark, or None: nowhere.

    Beside the mark where possible, else further and further off.
    """
    x, y, reach = *mark.centre, (mark.right - mark.left) / 2
    height = lines * LINE
    for distance in (reach + gap for gap in DISTANCES):
        for dx, dy in DIRECTIONS:
            left = x + dx * distance - _before(dx) * width
            top = y + dy * distance - _before(dy) * height
            box = Box(left, top, left + width, top + height)
            if frame.contains(box) and not any(box.meets(other) for other in taken):
                return box
    return None


def _before(direction: float) -> float:
    """The share of a label that lies before its anchor, which is the side near the mark."""
    return 0.5 if direction == 0 else 0.0 if direction > 0 else 1.0
