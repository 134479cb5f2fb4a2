"""What a bundle's packages are for: a version of Python, and a kind of Linux machine."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """Compiled packages fit one minor version of Python and one kind of processor.

    platforms: pip's tags for the systems that will do, the most wanted first; none: this very
    system, whatever it is.
    """

    python: str
    machine: str
    platforms: tuple[str, ...] = ()


def this_machine() -> Target:
    """The machine and the Python that this runs on."""
    return Target("{}.{}".format(*sys.version_info), platform.machine())
