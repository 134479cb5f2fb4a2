"""What a command gives back, and how it is laid out as text. Prints nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable
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


def table(data: dict[str, Any], indent: str = "") -> str:
    """Keys and values in two columns, nested ones indented."""
    lines = []
    for key, value in data.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}", table(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key:26} {value}")
    return "\n".join(lines)
