"""What a command gives back, and how it is laid out as text. Prints nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from packager.core.records import Progress


@dataclass(frozen=True, slots=True)
class CommandResult:
    """A command's outcome: data for --json and the same for a reader."""

    data: dict[str, Any]
    text: str
    exit_code: int = 0


Command = Callable[[argparse.Namespace, Progress], CommandResult]


def key_values(data: dict[str, Any], indent: str = "") -> str:
    """Keys and values in two columns, nested ones indented."""
    lines = []
    for key, value in data.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}", key_values(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key:26} {value}")
    return "\n".join(lines)


def columns(rows: Sequence[Sequence[str]], *, numbers_right: bool = False) -> list[str]:
    """Lines with aligned cells, headings first; plain text, whatever it is shown on.

    numbers_right: all but the first and the last column are flush right.
    """
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for at, (cell, width) in enumerate(zip(row, widths, strict=True)):
            blank = " " * (width - cell_len(cell))
            right = numbers_right and 0 < at < len(row) - 1
            cells.append(blank + cell if right else cell + blank)
        lines.append("  ".join(cells).rstrip())
    return lines
