"""What the report's template is given: words and pictures in their places, and tables.

Knows nothing of where the words come from or how they are marked up.
"""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from packager.report.data import Reason


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell shows, from above: a picture, a text of a class or element, notes, reasons."""

    text: str = ""
    class_: str = ""
    element: str = ""
    small: tuple[str, ...] = ()
    reasons: tuple[Reason, ...] = ()
    picture: Markup | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """The first cell names the row."""

    cells: tuple[Cell, ...]
    class_: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A caption, the names of the columns, and rows as wide as these."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    class_: str = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure of the chosen one, large, with notes below it."""

    title: str
    number: str
    unit: str
    small: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What would make a candidate fit."""

    variant: str
    words: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One sentence, after a `strong` beginning if any, and what belongs to it."""

    words: str
    strong: str = ""
    fails: bool = False
    tiles: tuple[Tile, ...] = ()
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A mark in a legend, by its classes in the style sheet, and what it means."""

    mark: str
    words: str


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture and its caption."""

    caption: str
    picture: Markup


@dataclass(frozen=True, slots=True)
class Front:
    """The candidates as a picture, at each size."""

    legend: tuple[Entry, ...]
    charts: tuple[Figure, ...]
    note: str


@dataclass(frozen=True, slots=True)
class Proofs:
    """Every proof of the window as a picture, the later ones folded away, and as a table."""

    legend: tuple[Entry, ...]
    shown: tuple[Figure, ...]
    folded: tuple[Figure, ...]
    table: Table


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory against context, as a picture and a table."""

    chart: Markup
    legend: tuple[Entry, ...]
    table: Table
