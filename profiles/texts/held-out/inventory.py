"""Stock of a small warehouse: what is on the shelves, what is promised, what has to be ordered."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path


class OutOfStock(Exception):
    """Raised where more pieces are asked for than are free."""


@dataclass(frozen=True)
class Delivery:
    """Pieces of one article that arrived on a day, and the day after which they are waste."""

    article: str
    pieces: int
    arrived: date
    best_before: date | None = None

    def is_fresh(self, today: date) -> bool:
        return self.best_before is None or today <= self.best_before


@dataclass
class Shelf:
    """The deliveries of one article, the oldest first."""

    deliveries: list[Delivery] = field(default_factory=list)
    reserved: int = 0

    def put(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        self.deliveries.sort(key=lambda item: (item.best_before or date.max, item.arrived))

    def free(self, today: date) -> int:
        fresh = sum(item.pieces for item in self.deliveries if item.is_fresh(today))
        return max(fresh - self.reserved, 0)

    def throw_away(self, today: date) -> int:
        """Remove what is past its date, and say how many pieces that was."""
        wasted = sum(item.pieces for item in self.deliveries if not item.is_fresh(today))
        self.deliveries = [item for item in self.deliveries if item.is_fresh(today)]
        return wasted


class Inventory:
    """All shelves. Articles are known by their number, a text such as `B-1042`."""

    def __init__(self, reorder_below: int = 20) -> None:
        self.reorder_below = reorder_below
        self.shelves: defaultdict[str, Shelf] = defaultdict(Shelf)

    def receive(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            if delivery.pieces <= 0:
                raise ValueError(f"{delivery.article}: {delivery.pieces} pieces were delivered")
            self.shelves[delivery.article].put(delivery)

    def reserve(self, article: str, pieces: int, today: date) -> None:
        shelf = self.shelves[article]
        free = shelf.free(today)
        if pieces > free:
            raise OutOfStock(f"{article}: {pieces} wanted, {free} free")
        shelf.reserved += pieces

    def to_reorder(self, today: date) -> Iterator[tuple[str, int]]:
        """Articles that run low, with the number of pieces that fills them up to twice the mark."""
        for article, shelf in sorted(self.shelves.items()):
            free = shelf.free(today)
            if free < self.reorder_below:
                yield article, 2 * self.reorder_below - free


def read_deliveries(file: Path, shelf_life: timedelta | None = None) -> list[Delivery]:
    """Deliveries from a CSV file with the columns article, pieces and arrived."""
    deliveries = []
    with file.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            arrived = date.fromisoformat(row["arrived"])
            best_before = arrived + shelf_life if shelf_life else None
            deliveries.append(Delivery(row["article"], int(row["pieces"]), arrived, best_before))
    return deliveries
